"""Recipes: functions that return the complete config of a run, or of several runs to compare.

A recipe's docstring says what it is, what to expect, on which hardware and how long. ``overture run NAME`` runs it.
Its ``tiny`` form is the same arrangement at a size that runs in about a minute on a CPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from overture.errors import UsageError, nearest

if TYPE_CHECKING:
    from overture.runs.config import RunConfig

__all__ = ["RECIPES", "Recipe", "load_recipe", "summary"]

Recipe = Callable[..., "tuple[RunConfig, ...]"]
"""``recipe(tiny: bool) -> configs``: one config is one run, several are runs to compare."""

RECIPES = {
    "quickstart": "overture.recipes.quickstart:quickstart",
    "fashion-mnist": "overture.recipes.fashion_mnist:fashion_mnist",
    "cifar10": "overture.recipes.cifar10:cifar10",
    "imagenet-2d": "overture.recipes.imagenet:imagenet_2d",
    "imagenet-1d": "overture.recipes.imagenet:imagenet_1d",
    "imagenet-vcq": "overture.recipes.imagenet:imagenet_vcq",
    "prologue-fashion-mnist": "overture.recipes.small_prologue:prologue_fashion_mnist",
    "prologue-post-fashion-mnist": "overture.recipes.small_prologue:prologue_post_fashion_mnist",
    "vcq-prologue": "overture.recipes.small_prologue:vcq_prologue",
    "prologue-b-b": "overture.recipes.prologue:prologue_b_b",
    "prologue-b-l": "overture.recipes.prologue:prologue_b_l",
    "prologue-b-xl": "overture.recipes.prologue:prologue_b_xl",
    "prologue-l-b": "overture.recipes.prologue:prologue_l_b",
    "prologue-l-l": "overture.recipes.prologue:prologue_l_l",
    "prologue-l-xl": "overture.recipes.prologue:prologue_l_xl",
    "prologue-post": "overture.recipes.prologue:prologue_post",
    "prologue-onestage": "overture.recipes.prologue:prologue_onestage",
}


def load_recipe(name: str) -> Recipe:
    """The recipe called ``name``."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe '{name}'{nearest(name, RECIPES)}")
    module, function = RECIPES[name].split(":")
    return getattr(importlib.import_module(module), function)


def summary(recipe: Recipe) -> str:
    """The first line of a recipe's docstring."""
    return (recipe.__doc__ or "").strip().split("\n")[0]

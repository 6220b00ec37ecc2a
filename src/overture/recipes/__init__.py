"""Recipes: functions that return the complete config of a run, or of several runs to compare.

A recipe's docstring says what it is, what to expect, on which hardware and how long. ``overture run NAME`` runs it, and
anyone's as ``overture run module:function``. Its ``tiny`` form is the same arrangement at a size that runs in about a
minute on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from overture.errors import UsageError
from overture.registry import OpenList, strangers_code

if TYPE_CHECKING:
    from overture.runs.config import RunConfig

__all__ = ["RECIPES", "Recipe", "load_recipe", "recipe_configs", "summary"]

Recipe = Callable[[], "RunConfig | tuple[RunConfig, ...]"]
"""One config is one run, several are runs to compare."""

RECIPES = OpenList(
    "recipe",
    {
        "quickstart": "overture.recipes.quickstart:quickstart",
        "fashion-mnist": "overture.recipes.fashion_mnist:fashion_mnist",
        "cifar10": "overture.recipes.cifar10:cifar10",
        "imagenet-2d": "overture.recipes.imagenet:imagenet_2d",
        "imagenet-1d": "overture.recipes.imagenet:imagenet_1d",
        "imagenet-vcq": "overture.recipes.imagenet:imagenet_vcq",
        "imagenet-vcq-xl": "overture.recipes.imagenet:imagenet_vcq_xl",
        "prologue-fashion-mnist": "overture.recipes.prologue_small:prologue_fashion_mnist",
        "prologue-post-fashion-mnist": "overture.recipes.prologue_small:prologue_post_fashion_mnist",
        "vcq-prologue": "overture.recipes.prologue_small:vcq_prologue",
        "lookup-free": "overture.recipes.quickstart:lookup_free",
        "fine-tune": "overture.recipes.fine_tune:fine_tune",
        "fine-tune-imagenet": "overture.recipes.fine_tune:fine_tune_imagenet",
        "prologue-b-b": "overture.recipes.prologue_imagenet:prologue_b_b",
        "prologue-b-l": "overture.recipes.prologue_imagenet:prologue_b_l",
        "prologue-b-xl": "overture.recipes.prologue_imagenet:prologue_b_xl",
        "prologue-l-b": "overture.recipes.prologue_imagenet:prologue_l_b",
        "prologue-l-l": "overture.recipes.prologue_imagenet:prologue_l_l",
        "prologue-l-xl": "overture.recipes.prologue_imagenet:prologue_l_xl",
        "prologue-post": "overture.recipes.prologue_imagenet:prologue_post",
        "prologue-onestage": "overture.recipes.prologue_imagenet:prologue_onestage",
    },
)


def load_recipe(name: str) -> Recipe:
    """The recipe called ``name``, ours or ``module:function``."""
    recipe: Recipe = RECIPES.get(name)
    if not callable(recipe):
        raise UsageError(f"{name}: is no function that returns the config of a run")
    return recipe


def recipe_configs(name: str, tiny: bool = False) -> tuple[RunConfig, ...]:
    """The runs of a recipe, or their tiny forms."""
    from overture.recipes.tiny import tiny_form
    from overture.runs.config import RunConfig

    recipe = load_recipe(name)
    with strangers_code(name):
        made = recipe()
    configs = made if isinstance(made, tuple | list) else (made,)
    if not configs or not all(isinstance(config, RunConfig) for config in configs):
        raise UsageError(f"{name}: returned {type(made).__name__}, needs a RunConfig or a tuple of them")
    if len({config.name for config in configs}) < len(configs):
        raise UsageError(f"{name}: its runs need different names, got {', '.join(config.name for config in configs)}")
    named = tuple(replace(config, recipe=config.recipe or name) for config in configs)
    return tuple(map(tiny_form, named)) if tiny else named


def summary(recipe: Recipe) -> str:
    """The first line of a recipe's docstring."""
    return (recipe.__doc__ or "").strip().split("\n")[0]

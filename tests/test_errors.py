"""Hints for misspelt names: near ones only, three at most, and never a page of them."""

from __future__ import annotations

import pytest

from overture.cli.run import parse_overrides
from overture.config import option, options
from overture.errors import UsageError, near, nearest
from overture.recipes import recipe_configs

OPTIONS = [option(name) for name, *_ in options(recipe_configs("prologue-b-b")[0])]


def test_only_what_is_near_is_a_hint() -> None:
    assert near("imagse", ["images", "labels"]) == " (did you mean 'images'?)"
    assert near("labels", ["images"]) == ""  # another word altogether
    assert near("photos", [".ssh", "cache"]) == ""
    assert near("", ["a", "b"]) == ""
    assert (
        near("chanels", ["data.channels", "data.workers"]) == " (did you mean 'data.channels'?)"
    )  # the last part is enough
    assert near("vqc", ["vcq", "vqq", "vq", "vqe", "zzz"]).count("'") == 6


def test_all_of_them_only_where_they_are_few() -> None:
    assert nearest("zzz", ["b", "a"]) == " (valid: a, b)"
    assert nearest("zzz", []) == ""
    assert nearest("zzz", OPTIONS) == ""
    assert len(OPTIONS) > 100


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("--data.chanels", "--data.channels"), ("--channels", "--data.channels"), ("--prior.dpeth", "--prior.depth")],
)
def test_an_unknown_option_is_answered_in_a_line_in_the_words_of_the_command_line(wrong: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_configs("prologue-b-b")[0].changed(parse_overrides([wrong, "3"]))
    assert str(caught.value).startswith(f"unknown option '{wrong}'")
    assert len(str(caught.value)) < 200
    assert "_" not in str(caught.value)
    assert f"'{meant}'" in str(caught.value)

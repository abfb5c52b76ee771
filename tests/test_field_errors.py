"""A wrong value is told by the user's own field, with all that is allowed there."""

from __future__ import annotations

from typing import Any

import pytest

from deltatune.errors import InputError
from deltatune.recipe import from_plain, named


@pytest.mark.parametrize(
    ("recipe", "given", "wanted"),
    [
        (
            "efficientft",
            {"value_learning_rate": [1]},
            "value_learning_rate=[1] is not allowed: give a valid number or a valid string",
        ),
        (
            "efficientft",
            {"targets": 5},
            "targets=5 is not allowed: give a valid string or a valid tuple",
        ),
        (
            "efficientft",
            {"targets": ["query", 5]},
            "targets[1]=5 is not allowed: give a valid string",
        ),
        (
            "lora",
            {"rank": "x"},
            "rank='x' is not allowed: give a valid integer, unable to parse string as an integer",
        ),
        (
            "lora",
            {"optimizer.betas": [0.9, None]},
            "optimizer.betas[1]=None is not allowed: give a valid number",
        ),
    ],
)
def test_wrong_value_is_told_by_its_own_field(recipe: str, given: Any, wanted: str) -> None:
    with pytest.raises(InputError) as refused:
        named(recipe, given)
    assert str(refused.value) == wanted


def test_missing_value_is_told_by_its_path() -> None:
    with pytest.raises(InputError) as refused:
        from_plain({"delta": "low_rank", "selection": {"kind": "by_pattern"}})
    assert str(refused.value) == "selection.patterns is missing: give it a value"


@pytest.mark.parametrize(
    ("field", "nearest", "all_in"),
    [
        ("rnak", "'rank'", "deltatune recipes lora"),
        ("training.epoch", "'training.epochs'", "deltatune schema"),
        ("trainng.epochs", "'training.epochs'", "deltatune schema"),
    ],
)
def test_unknown_field_names_the_nearest_five_and_where_all_are(
    field: str, nearest: str, all_in: str
) -> None:
    with pytest.raises(InputError) as refused:
        named("lora", {field: 1})
    message = str(refused.value)
    assert message.startswith(f"field '{field}' is not known: choose one of {nearest}, ")
    assert message.count("'") == 2 * (1 + 5 + 1)
    assert message.endswith(f" more, all in '{all_in}'")

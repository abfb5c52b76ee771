"""Distinct examples: every number once, families in equal shares, an honest limit."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from deltatune.data.offline.distinct_examples import (
    Family,
    digits,
    distinct_splits,
    without_repeats,
)
from deltatune.errors import InputError


def family(letter: str, size: int) -> Family:
    def make(number: int, generator: torch.Generator) -> dict[str, Any]:
        return {"prompt": f"{letter}{number}"}

    return Family(size, make)


def test_digits_name_every_combination_once() -> None:
    combinations = {tuple(digits(number, bases=(2, 3, 4))) for number in range(24)}
    assert combinations == set(itertools.product(range(2), range(3), range(4)))


def test_without_repeats_orders_are_equally_frequent() -> None:
    generator = torch.Generator().manual_seed(0)
    orders = Counter(tuple(without_repeats(3, generator)) for _ in range(1200))
    assert len(orders) == 6
    assert all(150 < count < 250 for count in orders.values())  # 200, standard deviation 13


def test_without_repeats_takes_a_few_of_very_many() -> None:
    numbers = list(itertools.islice(without_repeats(2**62, torch.Generator().manual_seed(0)), 50))
    assert len(set(numbers)) == 50
    assert max(numbers) > 2**61  # the upper half is drawn too


def test_distinct_splits_give_every_family_the_same_share() -> None:
    dataset = distinct_splits(
        [family("a", 1000), family("b", 40), family("c", 70)],
        {"train": 60, "validation": 6, "test": 12},
        seed=0,
        name="letters",
    )
    for split, size in {"train": 60, "validation": 6, "test": 12}.items():
        letters = Counter(prompt[0] for prompt in dataset[split]["prompt"])
        assert letters == {"a": size // 3, "b": size // 3, "c": size // 3}


def test_distinct_splits_use_up_everything_there_is() -> None:
    dataset = distinct_splits(
        [family("a", 2), family("b", 7)],
        {"train": 5, "validation": 2, "test": 2},
        seed=3,
        name="letters",
    )
    prompts = [prompt for split in dataset for prompt in dataset[split]["prompt"]]
    assert sorted(prompts) == ["a0", "a1", "b0", "b1", "b2", "b3", "b4", "b5", "b6"]


def test_distinct_splits_test_does_not_depend_on_the_training_size() -> None:
    def test_prompts(train: int) -> list[str]:
        sizes = {"train": train, "validation": 2, "test": 4}
        dataset = distinct_splits([family("a", 100)], sizes, seed=0, name="letters")
        return list(dataset["test"]["prompt"])

    assert test_prompts(10) == test_prompts(90)


def test_distinct_splits_refuse_more_than_there_are() -> None:
    message = (
        r"^train=5 is not allowed: letters has 8 different examples, of which the other splits "
        r"take 4; give at most 4$"
    )
    sizes = {"train": 5, "validation": 2, "test": 2}
    with pytest.raises(InputError, match=message):
        distinct_splits([family("a", 8)], sizes, seed=0, name="letters")

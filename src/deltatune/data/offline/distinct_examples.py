"""Families of numbered examples in, splits of different examples out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch

from deltatune.errors import InputError
from deltatune.seeds import generator_for, shuffled

__all__ = ["DRAWING_ORDER", "Family", "digits", "distinct_splits", "without_repeats"]

DRAWING_ORDER = ("test", "validation", "train")  # a test split does not depend on the other sizes


@dataclass(frozen=True)
class Family:
    """All examples that are built alike, numbered from 0.

    Args:
        size: how many there are, at least 1; two numbers never give the same input, neither within
            a family nor in two families of a task.
        make: number in, row out. The generator is for choices that do not make another example,
            such as the order in which facts are listed.
    """

    size: int
    make: Callable[[int, torch.Generator], Mapping[str, Any]]


def digits(number: int, *, bases: Sequence[int]) -> list[int]:
    """Write a number in a mixed base, lowest digit first: one choice among each of several lists.

    Args:
        number: from 0 to the product of the bases, exclusive.
        bases: how many choices each digit has.

    >>> digits(17, bases=(2, 3, 5))
    [1, 2, 2]
    """
    chosen = []
    for base in bases:
        number, digit = divmod(number, base)
        chosen.append(digit)
    return chosen


def without_repeats(size: int, generator: torch.Generator) -> Iterator[int]:
    """Yield all numbers below `size` in random order, without writing them down first.

    A Fisher-Yates shuffle whose array exists only where it was changed, so that a few numbers out
    of very many cost no more than themselves.

    >>> sorted(without_repeats(5, torch.Generator().manual_seed(0)))
    [0, 1, 2, 3, 4]
    """
    moved: dict[int, int] = {}
    for place in range(size):
        drawn = int(torch.randint(place, size, (), generator=generator))
        number = moved.get(drawn, drawn)
        moved[drawn] = moved.pop(place, place)
        yield number


def distinct_splits(
    families: Sequence[Family], sizes: Mapping[str, int], *, seed: int, name: str
) -> datasets.DatasetDict:
    """Draw splits in which no example occurs twice; every family gives the same share of each.

    A small family that is used up leaves its share to the others.

    Args:
        families: of the task at one difficulty.
        sizes: split -> number of examples.
        seed: of all choices.
        name: of task and difficulty; part of the seed.

    Raises:
        InputError: more examples than the families have.
    """
    _check_sizes(sum(family.size for family in families), sizes, name)
    rows = _drawn(families, generator_for(seed, name))
    splits = {split: [next(rows) for _ in range(sizes[split])] for split in DRAWING_ORDER}
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(splits[split]) for split in sizes}
    )


def _check_sizes(possible: int, sizes: Mapping[str, int], name: str) -> None:
    left = possible
    for split in DRAWING_ORDER:
        if sizes[split] > left:
            raise InputError(
                f"{split}={sizes[split]} is not allowed: {name} has {possible} different examples, "
                f"of which the other splits take {possible - left}; give at most {left}"
            )
        left -= sizes[split]


def _drawn(families: Sequence[Family], generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Yield rows in rounds: one of each family that still has some, in random order."""
    numbers = [without_repeats(family.size, generator) for family in families]
    while True:
        for family in shuffled(range(len(families)), generator):
            number = next(numbers[family], None)
            if number is not None:
                yield dict(families[family].make(number, generator))

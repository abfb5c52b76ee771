"""The 1797 scans of handwritten digits that come with scikit-learn, and how they are dealt out."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence

import datasets
import torch
from torch import Tensor

from deltatune.data.images import check_pillow, grey_image
from deltatune.errors import InputError
from deltatune.seeds import generator_for, shuffled

__all__ = ["HELD_OUT", "SIZE", "dataset", "dealt", "held_out", "scans", "scans_of"]

SIZE = 8  # pixels a side
LEVELS = 16  # of ink: a pixel counts the dark ones of 4 x 4 finer pixels
HELD_OUT = 59  # scans of each digit that `nano-vit` never saw: a third of the rarest


@functools.cache
def scans() -> tuple[Tensor, Tensor]:
    """Return all scans, `(1797, 8, 8)` float32 in [0, 1] (1 is ink), and their digits, `(1797,)`.

    Raises:
        InputError: scikit-learn, which holds them, is not installed.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI).
    """
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "the scans of digits come with the package scikit-learn, which is not installed: run "
            "'pip install deltatune[demo]'"
        )
    from sklearn.datasets import load_digits  # a second of imports, for these tasks only

    images, digits = load_digits(return_X_y=True)
    ink = torch.tensor(images, dtype=torch.float32).reshape(-1, SIZE, SIZE) / LEVELS
    return ink, torch.tensor(digits, dtype=torch.int64)


def scans_of(digit: int) -> list[int]:
    """Return the numbers of all scans of one digit."""
    return (scans()[1] == digit).nonzero().flatten().tolist()


def held_out(digit: int) -> tuple[list[int], list[int]]:
    """Part the scans of a digit: those that `nano-vit` was trained on, and `HELD_OUT` others.

    The choice is fixed, whatever the seed of a task: the base was trained once.
    """
    mixed = shuffled(scans_of(digit), generator_for(0, f"nano-vit held out {digit}"))
    return mixed[HELD_OUT:], mixed[:HELD_OUT]


def dealt(
    sizes: Mapping[str, int], pools: Mapping[str, Sequence[Sequence[int]]], seed: int, task: str
) -> dict[str, list[int]]:
    """Deal scans out, each once, so that every split has the digits equally often (within one).

    Args:
        sizes: split -> number of scans.
        pools: split -> for each digit the scans that it may have; splits that share a pool take
            from it one after the other.
        seed: of the choice and the order.
        task: name, for the generators and for errors.

    Raises:
        InputError: a split is larger than what is left of its pool.
    """
    waiting: dict[int, list[list[int]]] = {}
    chosen = {}
    for split in ("test", "validation", "train"):  # train takes what is left
        pool = pools[split]
        if id(pool) not in waiting:
            waiting[id(pool)] = [
                shuffled(found, generator_for(seed, f"{task} digit {place} of {len(waiting)}"))
                for place, found in enumerate(pool)
            ]
        left = waiting[id(pool)]
        most = len(left) * min(map(len, left))
        if sizes[split] > most:
            raise InputError(
                f"{split}={sizes[split]} is not allowed: {task} has {most} scans beside the other "
                f"splits, with all digits alike; give at most that many"
            )
        taken = [left[i % len(left)].pop() for i in range(sizes[split])]
        chosen[split] = shuffled(taken, generator_for(seed, f"{task} order {split}"))
    return {split: chosen[split] for split in sizes}


def dataset(
    numbers: Sequence[int], digits: Sequence[int], change: Callable[[Tensor, int], Tensor]
) -> datasets.Dataset:
    """Return scans as rows with `image` (white ink on black), `label` and `scan` (its number).

    Args:
        numbers: of the scans, in order.
        digits: that occur; the first is class 0.
        change: takes a scan, `(8, 8)` in [0, 1], and its number; returns what is shown of it.
    """
    check_pillow()
    ink, found = scans()
    pictures = [change(ink[i], i).clamp(0, 1).mul(255).round().int() for i in numbers]
    rows = {
        "image": [grey_image(SIZE, SIZE, picture.flatten().tolist()) for picture in pictures],
        "label": [digits.index(int(found[i])) for i in numbers],
        "scan": list(numbers),
    }
    features = datasets.Features(  # type: ignore[no-untyped-call]
        image=datasets.Image(),
        label=datasets.ClassLabel(names=[str(digit) for digit in digits]),
        scan=datasets.Value("int64"),
    )
    return datasets.Dataset.from_dict(rows, features=features)

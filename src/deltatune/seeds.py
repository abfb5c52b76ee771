"""Random choices that are the same on every rank and in every order of construction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

__all__ = ["generator_for", "seed_for", "shuffled"]

Item = TypeVar("Item")


def seed_for(seed: int, name: str, step: int = 0) -> int:
    """Derive a 63-bit seed from the run's seed, the name of a place and a step.

    >>> seed_for(0, "head") == seed_for(0, "head") != seed_for(0, "tail")
    True
    """
    digest = hashlib.sha256(f"{seed}\x00{name}\x00{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, name: str, step: int = 0) -> torch.Generator:
    """Return a CPU generator for one choice at one place.

    Numbers are drawn on the CPU and moved, so that a choice does not depend on the device.
    """
    return torch.Generator().manual_seed(seed_for(seed, name, step))


def shuffled(items: Sequence[Item], generator: torch.Generator) -> list[Item]:
    """Return all items in random order, each as often as it was given.

    Args:
        items: any sequence; it is not changed.
        generator: of the order. It moves on, so a second call gives another order.

    >>> sorted(shuffled("abca", generator_for(0, "letters")))
    ['a', 'a', 'b', 'c']
    """
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

"""What a language model has to beat: compressors, and 5-grams over bytes and over its own tokens.

All figures are bits per byte of the same held-out text.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["compressed", "five_gram"]

ORDER = 5
Integers = NDArray[np.int64]


def compressed(train: bytes, held_out: bytes) -> dict[str, float]:
    """Return what compressors need for the held-out text, lzma also after having read the rest."""
    options = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 28}]

    def packed(text: bytes) -> int:
        return len(lzma.compress(text, lzma.FORMAT_RAW, filters=options))

    bits = 8 / len(held_out)
    return {
        "zlib": len(zlib.compress(held_out, 9)) * bits,
        "lzma": packed(held_out) * bits,
        "lzma_after_training_text": (packed(train + held_out) - packed(train)) * bits,
    }


def five_gram(train: Sequence[int], held_out: Sequence[int], symbols: int, size: int) -> float:
    """Return bits per byte of a 5-gram model with Witten-Bell interpolation.

    The probability of a symbol after a context that was seen c times with t different successors is
    (count + t p) / (c + t), p being that after the context shortened by one; below all stands the
    uniform distribution.

    Args:
        train: symbols to count.
        held_out: symbols to predict.
        symbols: how many there are, at most 4,096, so that five fit into 60 bits.
        size: bytes of the held-out text.

    Source: Witten and Bell 1991, The zero-frequency problem, method C.
    """
    bits = max(1, math.ceil(math.log2(symbols)))
    if bits * ORDER > 63:
        raise ValueError(f"{symbols} symbols do not fit five times into 63 bits")
    seen, asked = np.asarray(train, np.int64), np.asarray(held_out, np.int64)
    probability = np.full(len(asked) - ORDER + 1, 1 / symbols)
    for order in range(1, ORDER + 1):
        probability = _mixed(probability, seen, asked, order, bits)
    return float(-np.log2(probability).sum() / size)


def _mixed(
    shorter: NDArray[np.float64], seen: Integers, asked: Integers, order: int, bits: int
) -> NDArray[np.float64]:
    """Mix the counts of one order into the probabilities of the order below."""
    grams, counts = np.unique(_packed(seen, order, bits), return_counts=True)
    contexts, starts = np.unique(grams >> bits, return_index=True)
    totals = np.add.reduceat(counts, starts)
    kinds = np.diff(np.append(starts, len(grams)))
    wanted = _packed(asked[ORDER - order :], order, bits)
    hits = _looked_up(grams, counts, wanted)
    total = _looked_up(contexts, totals, wanted >> bits)
    kind = _looked_up(contexts, kinds, wanted >> bits)
    known = total > 0
    mixed = shorter.copy()
    mixed[known] = (hits + kind * shorter)[known] / (total + kind)[known]
    return mixed


def _packed(symbols: Integers, order: int, bits: int) -> Integers:
    """Write each run of `order` symbols as one number, the newest symbol in the lowest bits."""
    length = len(symbols) - order + 1
    packed = np.zeros(length, np.int64)
    for place in range(order):
        packed = (packed << bits) | symbols[place : place + length]
    return packed


def _looked_up(keys: Integers, values: Integers, wanted: Integers) -> Integers:
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)

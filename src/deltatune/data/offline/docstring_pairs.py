"""Functions in, rows of function and docstring out: the one's own docstring, or another's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from deltatune.data.offline.documented_functions import Function, words
from deltatune.seeds import generator_for, shuffled

__all__ = [
    "LABELS",
    "Row",
    "alike_pairs",
    "pairs_at_random",
    "rows_of_module",
    "told_apart",
]

LABELS = ("other", "match")
MOST_ALIKE = 0.6  # above this share of common words two docstrings may fit each other's function

Row = tuple[str, str, int, str]  # function, docstring, label, module
Pairing = Callable[[Sequence[Function]], list[tuple[Function, Function]]]


def rows_of_module(functions: Sequence[Function], seed: int, pairing: Pairing) -> list[Row]:
    """Return rows in groups of other, match, other, match, so that any cut is balanced within 1.

    Args:
        functions: of one module.
        seed: of the choice who keeps the own docstring.
        pairing: who swaps docstrings with whom.
    """
    generator = generator_for(seed, f"docstring_matching {functions[0].module}")
    mixed = shuffled(functions, generator)
    half = len(mixed) // 2
    others = [
        (function.source, partner.docstring, LABELS.index("other"), function.module)
        for pair in pairing(mixed[:half])
        for function, partner in (pair, pair[::-1])
    ]
    matches = [
        (function.source, function.docstring, LABELS.index("match"), function.module)
        for function in mixed[half:]
    ]
    return list(itertools.chain.from_iterable(zip(others, matches, strict=False)))


def alike_pairs(functions: Sequence[Function]) -> list[tuple[Function, Function]]:
    """Pair functions, the most alike first, that could not keep each other's docstring."""
    return _pairs(functions, _likeness)


def pairs_at_random(functions: Sequence[Function]) -> list[tuple[Function, Function]]:
    """Pair functions as they come, if they could not keep each other's docstring."""
    return _pairs(functions, lambda one, other: 0.0)


def _pairs(
    functions: Sequence[Function], preference: Callable[[Function, Function], float]
) -> list[tuple[Function, Function]]:
    pairs = [
        (-preference(functions[i], functions[j]), i, j)
        for i, j in itertools.combinations(range(len(functions)), 2)
        if not _may_fit(functions[i], functions[j])
    ]
    taken: set[int] = set()
    chosen = []
    for _, i, j in sorted(pairs):
        if taken.isdisjoint((i, j)):
            taken |= {i, j}
            chosen.append((functions[i], functions[j]))
    return chosen


def _may_fit(one: Function, other: Function) -> bool:
    if one.name == other.name:
        return True
    return _common_share(one.docstring_words, other.docstring_words) > MOST_ALIKE


def _likeness(one: Function, other: Function) -> float:
    lengths = sorted((len(one.docstring), len(other.docstring)))
    return (
        _common_share(one.name_words, other.name_words)
        + _common_share(one.docstring_words, other.docstring_words)
        + lengths[0] / lengths[1]
    )


def _common_share(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def told_apart(rows: Sequence[Row]) -> list[Row]:
    """Exchange the docstrings of the rows "other" until each shares no word with its function.

    Nor does it come from the function's module. Rows for which nothing fits are left out, each with
    one row "match", so that any cut stays balanced within 1.

    Args:
        rows: of `rows_of_module`, of several modules.
    """
    others = [row for row in rows if row[2] == LABELS.index("other")]
    matches = [row for row in rows if row[2] == LABELS.index("match")]
    waiting = {i: (words(row[1]), row[3]) for i, row in enumerate(others)}  # docstrings
    easy: list[Row] = []
    for function, _, label, module in sorted(others, key=lambda row: -len(words(row[0]))):
        spoken = words(function)
        fitting = (i for i, (said, home) in waiting.items() if home != module and not said & spoken)
        chosen = next(fitting, None)
        if chosen is not None:
            del waiting[chosen]
            easy.append((function, others[chosen][1], label, module))
    return list(itertools.chain.from_iterable(zip(easy, matches, strict=False)))

"""Is this sentence English? Minimal pairs from a small grammar, which no count of words solves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import datasets

from deltatune.data.offline.distinct_examples import DRAWING_ORDER
from deltatune.data.offline.minimal_pairs import LEVELS, Pair, squares
from deltatune.data.offline.offline_task import Level, OfflineTask
from deltatune.errors import InputError
from deltatune.seeds import generator_for, shuffled

__all__ = ["LABELS", "TASK", "acceptability"]

LABELS = ("unacceptable", "acceptable")
SQUARE = 4  # sentences: two pairs


def acceptability(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    """Build the task: half of the sentences keep a rule of grammar, half break it.

    Whole squares of `minimal_pairs` go to one split, so both members of a pair are in one split,
    and each word occurs as often under one label as under the other (but for the last square,
    which is cut to the size). A level's phenomena take turns.

    Args:
        sizes: split -> number of examples.
        seed: of the choice of sentences and of their order.
        difficulty: 1 to 3.

    Returns:
        Splits with the columns `sentence`, `label` (0 = unacceptable, 1 = acceptable),
        `phenomenon` and `pair` (the same number for both members, in all splits).

    Raises:
        InputError: more examples than the grammar has.
    """
    found = _squares(seed, difficulty)
    splits = {}
    for split in DRAWING_ORDER:
        rows = _rows(found, sizes[split])
        if len(rows) < sizes[split]:
            raise InputError(
                f"{split}={sizes[split]} is not allowed: acceptability at difficulty {difficulty} "
                f"has {len(rows)} different sentences beside the other splits; give at most that "
                "many"
            )
        generator = generator_for(seed, f"acceptability order {split}")
        splits[split] = _dataset(shuffled(rows, generator))
    return datasets.DatasetDict({split: splits[split] for split in sizes})


def _squares(seed: int, difficulty: int) -> Iterator[tuple[int, str, tuple[Pair, Pair]]]:
    """Yield number, phenomenon and pairs; the phenomena take turns until all are used up."""
    waiting = [
        (
            phenomenon.name,
            squares(phenomenon, generator_for(seed, f"acceptability {phenomenon.name}")),
        )
        for phenomenon in LEVELS[difficulty - 1]
    ]
    number = 0
    while waiting:
        for turn in tuple(waiting):
            name, source = turn
            square = next(source, None)
            if square is None:
                waiting.remove(turn)
            else:
                yield number, name, square
                number += 1


def _rows(found: Iterator[tuple[int, str, tuple[Pair, Pair]]], size: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while len(rows) < size:
        number, phenomenon, pairs = next(found, (0, "", ()))
        if not pairs:
            break
        for i, (good, bad) in enumerate(pairs):
            shared = {"phenomenon": phenomenon, "pair": 2 * number + i}
            rows.append({"sentence": good, "label": LABELS.index("acceptable"), **shared})
            rows.append({"sentence": bad, "label": LABELS.index("unacceptable"), **shared})
    return rows[:size]


def _dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    features = datasets.Features(  # type: ignore[no-untyped-call]
        sentence=datasets.Value("string"),
        label=datasets.ClassLabel(names=list(LABELS)),
        phenomenon=datasets.Value("string"),
        pair=datasets.Value("int64"),
    )
    return datasets.Dataset.from_list(rows, features=features)


TASK = OfflineTask(
    name="acceptability",
    title="Tell sentences that keep a rule of grammar from those that break it",
    kind="classification",
    base="deltatune/nano",
    metric="accuracy",
    levels=(
        Level(what="short, the words that clash stand side by side", chance=0.5),
        Level(what="agreement, reflexives, word order, auxiliaries, tense", chance=0.5),
        Level(what="agreement over a distance, past a noun that misleads", chance=0.5),
    ),
    difficulty=2,
    sizes=MappingProxyType({"train": 1500, "validation": 200, "test": 600}),
    columns=MappingProxyType({"text": "sentence", "label": "label"}),
    build=acceptability,
)

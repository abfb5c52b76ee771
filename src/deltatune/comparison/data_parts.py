"""Data in the three parts that a fair comparison needs, the same for every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from deltatune.data.loading import Examples, load
from deltatune.errors import InputError
from deltatune.files import replace_folder_atomically

__all__ = ["DataParts", "data_parts", "with_label_names"]

SEED = 0  # of the splits; the same for all recipes and seeds


@dataclass(frozen=True, kw_only=True)
class DataParts:
    """What every run of a comparison loads.

    Args:
        source: a name or path with a training, a validation and a test part.
        columns: column role -> column name, or None to guess.
        task: of the data.
        examples: what is loaded from it.
        notes: which parts were split off.
    """

    source: str
    columns: Mapping[str, str] | None
    task: str
    examples: Examples
    notes: tuple[str, ...]


def data_parts(
    source: Any, folder: Path, *, columns: Mapping[str, str] | None, task: str | None
) -> DataParts:
    """Make sure that there are three parts: rates are chosen on one, results come from another.

    What lacks a part, or lies only in this process's memory, is written to `folder` once, in the
    format of `datasets`. The test part that was given is never divided; without one, the validation
    part that was given is the test, and a new one is split off the training part.

    Args:
        source: as for `load`.
        folder: where to write; not made where nothing is to be written.
        columns: as for `load`.
        task: as for `load`.

    Raises:
        InputError: the data cannot be read, or has too few rows for three parts.
    """
    found = load(source, columns=columns, task=task, validation_fraction=0, seed=SEED)
    if {"validation", "test"} <= set(found.splits) and isinstance(source, str | Path):
        return DataParts(
            source=str(source), columns=columns, task=found.task, examples=found, notes=found.notes
        )
    parts, notes = _three(found)
    kept = datasets.DatasetDict(
        {name: with_label_names(rows, found) for name, rows in parts.items()}
    )
    if not folder.exists():
        with replace_folder_atomically(folder) as temporary:
            kept.save_to_disk(temporary)
    examples = load(folder, columns=found.columns, task=found.task, seed=SEED)
    return DataParts(
        source=str(folder), columns=found.columns, task=found.task, examples=examples, notes=notes
    )


def _three(found: Examples) -> tuple[dict[str, datasets.Dataset], tuple[str, ...]]:
    parts, notes = dict(found.splits), list(found.notes)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        notes.append("the validation part is the test, since there is no other")
    for name in ("test", "validation"):
        if name not in parts:
            before = parts["train"].num_rows
            parts["train"], parts[name] = _split_off(parts["train"], found)
            notes.append(f"{parts[name].num_rows} of {before} training rows are the {name} part")
    return parts, tuple(notes)


def _split_off(
    rows: datasets.Dataset, found: Examples
) -> tuple[datasets.Dataset, datasets.Dataset]:
    divided = load({"train": rows}, columns=found.columns, task=found.task, seed=SEED).splits
    if "validation" not in divided:
        raise InputError(
            f"the data has {rows.num_rows} training rows left, too few to split a part off: a "
            f"comparison needs rows to train on, to choose rates by and to test on, so give more"
        )
    return divided["train"], divided["validation"]


def with_label_names(rows: datasets.Dataset, found: Examples) -> datasets.Dataset:
    """Give class ids their names back, which the run shows and the model stores."""
    if not found.label_names:
        return rows
    names = datasets.ClassLabel(names=list(found.label_names))
    named: datasets.Dataset = rows.cast_column(found.columns["label"], names)
    return named

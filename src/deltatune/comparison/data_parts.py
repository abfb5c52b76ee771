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
        name: of what was given, for readers.
        columns: column role -> column name, or None to guess.
        task: of the data.
        examples: what is loaded from it.
        notes: which parts were split off.
    """

    source: str
    name: str
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
        folder: where to write; not made where nothing is to be written, and taken as it is where
            it holds the same.
        columns: as for `load`.
        task: as for `load`.

    Raises:
        InputError: the data cannot be read, or has too few rows for three parts; or the folder
            holds parts of other data.
    """
    found = load(source, columns=columns, task=task, validation_fraction=0, seed=SEED)
    if {"validation", "test"} <= set(found.splits) and isinstance(source, str | Path):
        return DataParts(
            source=str(source),
            name=found.source,
            columns=columns,
            task=found.task,
            examples=found,
            notes=found.notes,
        )
    parts, notes = _three(found)
    kept = datasets.DatasetDict(
        {name: with_label_names(rows, found) for name, rows in parts.items()}
    )
    was_there = folder.exists()
    if not was_there:
        with replace_folder_atomically(folder) as temporary:
            kept.save_to_disk(temporary)
    examples = load(folder, columns=found.columns, task=found.task, seed=SEED)
    if was_there:
        asked = load(kept, columns=found.columns, task=found.task, seed=SEED)
        _check_same(asked, examples, found.source, folder)
    return DataParts(
        source=str(folder),
        name=found.source,
        columns=found.columns,
        task=found.task,
        examples=examples,
        notes=notes,
    )


def _check_same(asked: Examples, kept: Examples, name: str, folder: Path) -> None:
    """Refuse to go on with other rows, or with rows that were changed, as if they were the same."""
    if asked.fingerprint != kept.fingerprint:
        raise InputError(
            f"{str(folder)!r} keeps the parts of other data than {name!r} is now: give another "
            f"output folder, or the data that the comparison began with"
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

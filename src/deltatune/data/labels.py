"""A label column in, class ids with their names or real numbers out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa

from deltatune.errors import InputError

__all__ = ["encode_labels"]

MOST_CLASSES_UNASKED = 100  # more different labels than this, in half of the rows, is no class list


def encode_labels(
    columns: Mapping[str, pa.ChunkedArray], feature: object, task: str | None, column: str
) -> tuple[str, dict[str, pa.Array], tuple[str, ...]]:
    """Turn labels into class ids (int64) or numbers (float64).

    Classes are what the training split holds: a `ClassLabel` keeps its names and order; numbers are
    ordered by value, other text alphabetically. Numbers with a fraction are read as regression.

    Args:
        columns: split -> its labels, none of them null; "train" is there.
        feature: the column's type in `datasets`.
        task: "classification", "regression", or None to tell it from the values.
        column: the column's name, for errors.

    Returns:
        The task, split -> encoded labels, and the class names (empty for regression).

    Raises:
        InputError: labels are not finite, constant, too many, or absent from the training split.
    """
    values = {split: labels.to_pylist() for split, labels in columns.items()}
    for split in values:
        _check_plain(values[split], split, column)
    if isinstance(feature, datasets.ClassLabel) and task != "regression":
        names = tuple(str(name) for name in feature.names)
        named = {split: _named(values[split], names, split, column) for split in values}
        return "classification", _ids(named, names, column), names
    numbers = {split: _numbers(values[split]) for split in values}
    task = task or _task_of(values["train"], numbers["train"], column)
    if task == "regression":
        return task, _reals(numbers, values, column), ()
    named = {split: _class_names(values[split], column) for split in values}
    names = _ordered(set(named["train"]))
    return task, _ids(named, names, column), names


def _check_plain(labels: Sequence[Any], split: str, column: str) -> None:
    for number, label in enumerate(labels, start=1):
        if not isinstance(label, bool | int | float | str):
            raise InputError(
                f"column {column!r} holds a {type(label).__name__} in row {number} of {split}: "
                "a label is one number or one text per row"
            )


def _named(labels: Sequence[Any], names: Sequence[str], split: str, column: str) -> list[str]:
    for number, label in enumerate(labels, start=1):
        if not 0 <= label < len(names):
            meaning = ", which stands for no label" if label == -1 else ""
            raise InputError(
                f"column {column!r} holds {label} in row {number} of {split}{meaning}: give a "
                f"number from 0 to {len(names) - 1}, or leave this split out"
            )
    return [names[label] for label in labels]


def _numbers(labels: Sequence[Any]) -> list[float] | None:
    """Read every label as a number, or none of them; text counts where all of it are numbers."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return None


def _task_of(labels: Sequence[Any], numbers: Sequence[float] | None, column: str) -> str:
    has_fractions = numbers is not None and any(
        math.isfinite(number) and not number.is_integer() for number in numbers
    )
    if has_fractions:
        return "regression"
    different = len(set(labels))
    if different > MOST_CLASSES_UNASKED and 2 * different > len(labels):
        advice = "task regression or classification" if numbers else "task classification"
        raise InputError(
            f"column {column!r} has {different} different values in {len(labels)} rows, which "
            f"looks like no list of classes: give the {advice}, or another label column"
        )
    return "classification"


def _reals(
    numbers: Mapping[str, Sequence[float] | None], values: Mapping[str, Sequence[Any]], column: str
) -> dict[str, pa.Array]:
    for split, labels in numbers.items():
        for number, label in enumerate(labels or values[split], start=1):
            if not _is_finite(label):
                raise InputError(
                    f"column {column!r} holds {values[split][number - 1]!r} in row {number} of "
                    f"{split}: regression needs a finite number in every row"
                )
    train = numbers["train"] or ()
    if len(set(train)) == 1:
        raise InputError(
            f"column {column!r} holds only {train[0]:g} in train: there is nothing to learn; "
            "give another label column"
        )
    return {split: pa.array(labels, type=pa.float64()) for split, labels in numbers.items()}


def _is_finite(label: Any) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def _class_names(labels: Sequence[Any], column: str) -> list[str]:
    for label in labels:
        if isinstance(label, float) and not label.is_integer():
            raise InputError(
                f"column {column!r} holds {label!r}, which is no class: give the task regression"
            )
    return [str(int(label)) if isinstance(label, float) else str(label) for label in labels]


def _ordered(names: set[str]) -> tuple[str, ...]:
    numbers = _numbers(sorted(names))
    if numbers is None or not all(map(math.isfinite, numbers)):
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (float(name), name)))


def _ids(
    named: Mapping[str, Sequence[str]], names: Sequence[str], column: str
) -> dict[str, pa.Array]:
    seen = set(named["train"])
    if len(seen) == 1:
        raise InputError(
            f"column {column!r} holds only {next(iter(seen))!r} in all {len(named['train'])} rows "
            "of train: classification needs two classes; give another label column"
        )
    for split, labels in named.items():
        unseen = Counter(label for label in labels if label not in seen)
        if unseen:
            listed = ", ".join(f"{name!r} ({count} rows)" for name, count in sorted(unseen.items()))
            raise InputError(
                f"column {column!r} of {split} has labels that train never shows: {listed}; train "
                f"has {', '.join(map(repr, sorted(seen)))}: add such rows to train, or take them "
                f"out of {split}"
            )
    position = {name: place for place, name in enumerate(names)}
    return {
        split: pa.array([position[label] for label in labels], type=pa.int64())
        for split, labels in named.items()
    }

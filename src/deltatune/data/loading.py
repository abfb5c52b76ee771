"""Any source in, checked examples out: roles assigned, labels encoded, splits complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from deltatune.data import images
from deltatune.data.columns import LITERAL, assign_roles
from deltatune.data.labels import encode_labels
from deltatune.data.rows import prepared_column
from deltatune.data.sources import SPLIT_NAMES, Source, open_source
from deltatune.data.tasks import TASKS
from deltatune.data.yardstick import Yardstick
from deltatune.errors import InputError

__all__ = ["Examples", "load"]

ROWS_AT_A_TIME = 4096
SHOWN_CHARACTERS = 60
OUTPUT_ROLES = ("label", "completion")


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Checked rows of one task, not yet tokens or pixels.

    Args:
        task: a name of `tasks.TASKS`.
        columns: role -> column name; the splits hold these columns and no others.
        splits: "train", and "validation" and "test" where there are any. Labels are class ids
            (int64) or numbers (float64).
        label_names: of the classes, index = class id; empty for other tasks.
        source: what the user gave.
        fingerprint: sha256 over task, class names and all rows, before a validation part is split
            off; the same on every machine and for every file format.
        separator: put between prompt and completion where neither has white space there.
        notes: what was left out, renamed or added.
        yardstick: how its maker wants answers judged; None where nobody says, or where the user
            reads the columns in another way than the maker.
    """

    task: str
    columns: dict[str, str]
    splits: dict[str, datasets.Dataset]
    label_names: tuple[str, ...]
    source: str
    fingerprint: str
    separator: str = ""
    notes: tuple[str, ...] = ()
    yardstick: Yardstick | None = None

    def table(self) -> Table:
        """Show which column plays which role, with the first training row."""
        counts = ", ".join(f"{rows.num_rows} {name}" for name, rows in self.splits.items())
        table = Table(title=f"{self.task}: {counts}", title_justify="left")
        for heading in ("role", "column", "first row"):
            table.add_column(heading, overflow="fold")
        first = self.splits["train"][0]
        for role, column in self.columns.items():
            names = self.label_names if role == "label" else ()
            shown = _shown(first[column], names, is_image=role == "image")
            table.add_row(role, column, escape(shown))
        return table


def load(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Examples:
    """Load, check and split the examples of one task.

    Where no validation part exists, one is split off the training part: rows are ordered by a hash
    of the seed and their inputs (not their labels or completions), so the choice is the same on
    every machine and in every order of the rows, and rows with equal inputs stay on one side. The
    last row of each class stays in training.

    Args:
        source: a file, folder, Hugging Face name or Python object; see `sources.open_source`.
        columns: role -> column name, for roles that cannot or should not be guessed.
        task: one of `tasks.TASKS`, or None to tell it from the columns and labels.
        validation_fraction: part of the training rows, in [0, 1); 0 splits nothing off.
        seed: of the split.

    Raises:
        InputError: nothing readable, or rows that cannot be trained on; the place is named.
    """
    if not 0 <= validation_fraction < 1:
        raise InputError(
            f"validation_fraction={validation_fraction} is not allowed: give a number in [0, 1)"
        )
    opened = open_source(source)
    as_made = opened.task is not None and columns is None and task in (None, opened.task)
    if as_made:
        columns, task = opened.columns, opened.task
    features = opened.splits["train"].features
    known_task, roles = assign_roles(features, columns, task)
    if task in ("classification", "regression"):
        known_task = task
    tables = {
        split: {role: prepared_column(rows, role, column, split) for role, column in roles.items()}
        for split, rows in opened.splits.items()
    }
    label_names: tuple[str, ...] = ()
    if "label" in roles:
        labels = {split: table["label"] for split, table in tables.items()}
        reads_images = known_task is not None and TASKS[known_task].reads == "image"
        asked = "classification" if reads_images else known_task
        told, encoded, label_names = encode_labels(
            labels, features[roles["label"]], asked, roles["label"]
        )
        known_task = known_task or told
        for split, ids in encoded.items():
            tables[split]["label"] = ids
    assert known_task is not None, "only a label column leaves the task open"
    return _finished(
        {split: pa.table(table) for split, table in tables.items()},
        task=known_task,
        roles=roles,
        label_names=label_names,
        opened=opened,
        yardstick=opened.yardstick if as_made else None,
        validation_fraction=validation_fraction,
        seed=seed,
    )


def _finished(
    tables: dict[str, pa.Table],
    *,
    task: str,
    roles: dict[str, str],
    label_names: tuple[str, ...],
    opened: Source,
    yardstick: Yardstick | None,
    validation_fraction: float,
    seed: int,
) -> Examples:
    notes = opened.notes
    fingerprint = _fingerprint(tables, task, label_names)
    if "validation" not in tables and validation_fraction > 0:
        classes = TASKS[task].answers == "class"
        tables, note = _with_validation(tables, validation_fraction, seed, keeps_classes=classes)
        notes = (*notes, note)
    separator = "\n" if task == "completion" and _is_broken_line(roles) else ""
    if separator:
        prompt, completion = roles.get("context", roles["prompt"]), roles["completion"]
        notes = (
            *notes,
            f"a line break is put between {prompt} and {completion} where neither has white space",
        )
    splits = {}
    for split in SPLIT_NAMES:
        if split in tables:
            table = tables[split].rename_columns(
                [roles[role] for role in tables[split].column_names]
            )
            splits[split] = datasets.Dataset(table, fingerprint=f"{fingerprint[:12]}{split}{seed}")
    return Examples(
        task=task,
        columns=roles,
        splits=splits,
        label_names=label_names,
        source=opened.name,
        fingerprint=fingerprint,
        separator=separator,
        notes=notes,
        yardstick=yardstick,
    )


def _is_broken_line(roles: Mapping[str, str]) -> bool:
    return (roles["prompt"], roles["completion"]) != LITERAL


def _row_bytes(table: pa.Table) -> Iterator[bytes]:
    if "image" in table.column_names:
        place = table.column_names.index("image")
        table = table.set_column(place, "image", images.digests(table.column("image")))
    for batch in table.to_batches(max_chunksize=ROWS_AT_A_TIME):
        for row in batch.to_pylist():
            yield json.dumps(_plain(row), ensure_ascii=False, sort_keys=True).encode()


def _plain(value: Any) -> Any:
    """Drop nulls: whether a missing field is stored as null depends on the file format."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if inner is not None}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _fingerprint(tables: Mapping[str, pa.Table], task: str, label_names: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([task, list(label_names)]).encode())
    for split in SPLIT_NAMES:
        if split in tables:
            digest.update(f"\x00{split}\x00".encode())
            for row in _row_bytes(tables[split]):
                digest.update(row + b"\n")
    return digest.hexdigest()


def _with_validation(
    tables: Mapping[str, pa.Table], fraction: float, seed: int, *, keeps_classes: bool
) -> tuple[dict[str, pa.Table], str]:
    train = tables["train"]
    inputs = train.select([role for role in train.column_names if role not in OUTPUT_ROLES])
    keys = [hashlib.sha256(b"%d\x00" % seed + row).digest() for row in _row_bytes(inputs)]
    order = sorted(range(len(keys)), key=lambda row: (keys[row], row))
    # Numbers of a regression are no classes: most occur once, and all rows would stay.
    labels = train.column("label").to_pylist() if keeps_classes else [0] * len(keys)
    kept = {labels[row]: row for row in order}  # the last of each class: training shows every class
    free = [row for row in order if kept[labels[row]] != row]
    if not free:
        return dict(tables), "no validation part: too few rows to split one off"
    count = max(1, round(fraction * len(keys)))
    next_key = keys[free[count]] if count < len(free) else None
    whole_groups = {row for row in free[:count] if keys[row] != next_key}
    chosen = whole_groups or set(free[:count])  # one huge group of equal inputs must be divided
    is_chosen = pa.array([row in chosen for row in range(len(keys))])
    is_left = pa.array([row not in chosen for row in range(len(keys))])
    parts = {**tables, "train": train.filter(is_left), "validation": train.filter(is_chosen)}
    return parts, f"{len(chosen)} of {len(keys)} training rows were split off for validation"


def _shown(value: Any, label_names: Sequence[str], *, is_image: bool = False) -> str:
    if is_image:
        return images.shown(value)
    if label_names and isinstance(value, int):
        return f"{label_names[value]!r} (one of {len(label_names)} classes)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."

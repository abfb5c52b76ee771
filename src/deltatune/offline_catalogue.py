"""The tables of offline tasks and packaged bases, made from their declarations and files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deltatune import packaged_bases
from deltatune.checkpoints import open_safetensors
from deltatune.data.offline import known_tasks
from deltatune.data.offline.known_tasks import OWNER
from deltatune.data.offline.offline_task import OfflineTask
from deltatune.markdown_table import markdown_table

__all__ = [
    "bases",
    "bases_markdown",
    "bases_table",
    "names",
    "task",
    "task_page",
    "tasks",
    "tasks_markdown",
    "tasks_table",
]

SHOWN_ROWS = 3
SMALLEST_SPLIT = 2
TASK_HEADINGS = ("name", "what", "kind", "base", "metric", "chance", "ceiling", "levels (own)")
BASE_HEADINGS = ("name", "parameters", "MB", "what it is")


def tasks() -> list[dict[str, Any]]:
    """Return what every offline task states of itself, by name."""
    return [_stated(task) for task in known_tasks.known().values()]


def _stated(task: OfflineTask) -> dict[str, Any]:
    return {
        "name": OWNER + task.name,
        "title": task.title,
        "kind": task.kind,
        "base": task.base,
        "metric": task.metric,
        "chance": task.level().chance,
        "ceiling": task.level().ceiling,
        "difficulty": task.difficulty,
        "levels": [
            {"what": level.what, "chance": level.chance, "ceiling": level.ceiling}
            for level in task.levels
        ],
        "sizes": dict(task.sizes),
        "columns": dict(task.columns),
    }


def task(name: str) -> dict[str, Any]:
    """Return one task with three of its training rows.

    Args:
        name: with or without `deltatune/`, and with options (`boxes:difficulty=3,seed=1`).

    Raises:
        InputError: the name (nearest names given) or one of its options is wrong.
    """
    found, options = known_tasks.named(name)
    small = {split: SMALLEST_SPLIT for split in ("validation", "test")}
    rows = found.load(**{"train": SHOWN_ROWS, **small, **options})["train"]
    level = found.level(options.get("difficulty", 0))
    shown = [rows[i] for i in range(min(SHOWN_ROWS, rows.num_rows))]
    return {
        **_stated(found),
        "chance": level.chance,
        "ceiling": level.ceiling,
        "difficulty": options.get("difficulty", 0) or found.difficulty,
        "rows": [{role: row[column] for role, column in found.columns.items()} for row in shown],
    }


def names() -> Text:
    """Return two lines that name all tasks and bases."""
    found = {
        "offline tasks (deltatune tasks)": known_tasks.known(),
        "packaged bases (deltatune bases)": packaged_bases.known(),
    }
    lines = [f"{what}: {', '.join(OWNER + name for name in of)}" for what, of in found.items()]
    return Text("\n".join(lines))


def tasks_table() -> Table:
    """Return all tasks as a table for the terminal."""
    return _table("offline tasks (deltatune tasks NAME shows examples)", TASK_HEADINGS, _tasks())


def tasks_markdown() -> str:
    """Return all tasks as the Markdown table of the README."""
    return markdown_table(TASK_HEADINGS, _tasks())


def _tasks() -> list[list[str]]:
    return [
        [
            row["name"],
            row["title"],
            row["kind"],
            row["base"],
            row["metric"],
            f"{row['chance']:.3g}",
            f"{row['ceiling']:.3g}",
            _levels(row),
        ]
        for row in tasks()
    ]


def _levels(row: Mapping[str, Any]) -> str:
    number = len(row["levels"])
    return "1" if number == 1 else f"1 to {number} ({row['difficulty']})"


def task_page(name: str) -> Group:
    """Return one task as a page for the terminal: its levels and three examples.

    Raises:
        InputError: as `task`.
    """
    row = task(name)
    levels = Table(title=f"levels ({row['name']}:difficulty=N)", title_justify="left")
    for heading in ("difficulty", "what", "chance", "ceiling"):
        levels.add_column(heading, overflow="fold")
    for number, level in enumerate(row["levels"], start=1):
        stated = (f"{level['chance']:.3g}", f"{level['ceiling']:.3g}")
        levels.add_row(str(number), level["what"], *stated)
    examples = Table(title=f"examples of level {row['difficulty']}", title_justify="left")
    for role in row["columns"]:
        examples.add_column(role, overflow="fold")
    for example in row["rows"]:
        # White space belongs to a prompt or completion: `repr` shows where it is.
        examples.add_row(*(escape(_shown(value)) for value in example.values()), end_section=True)
    sizes = ", ".join(f"{split}={size}" for split, size in row["sizes"].items())
    command = f"try: deltatune train --model {row['base']} --data {row['name']} --output runs/try"
    return Group(
        Text(f"{row['name']}: {row['title']}", style="bold"),
        Text(f"{row['kind']} for {row['base']}, scored by {row['metric']}; sizes {sizes}"),
        levels,
        examples,
        # On one line however long it is, so that it can be copied.
        Text(command, no_wrap=True, overflow="ignore"),
    )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if value.strip() != value else value
    size = getattr(value, "size", None)  # of an image
    return f"image of {size[0]} x {size[1]} pixels" if isinstance(size, tuple) else str(value)


def bases() -> list[dict[str, Any]]:
    """Return what every packaged base is, by name: from its files, without loading it."""
    return [_base(name, folder) for name, folder in packaged_bases.known().items()]


def _base(name: str, folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "name": OWNER + name,
        "model_type": config["model_type"],
        "parameters": _parameters(folder),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "card": _first_sentence(folder / "README.md"),
        "folder": str(folder),
    }


def _parameters(folder: Path) -> int:
    """Count the values that the weights' files hold, by their headers alone."""
    number = 0
    for path in sorted(folder.glob("*.safetensors")):
        with open_safetensors(path) as file:
            number += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    return number


def _first_sentence(card: Path) -> str:
    """Return the first sentence of a model card, behind its header and title."""
    if not card.is_file():
        return ""
    text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    paragraphs = (
        " ".join(paragraph.split())
        for paragraph in re.split(r"\n\s*\n|^#.*$", text, flags=re.MULTILINE)
    )
    first = next((paragraph for paragraph in paragraphs if paragraph), "")
    return re.split(r"(?<=\.)\s", first)[0]


def bases_table() -> Table:
    """Return all bases as a table for the terminal."""
    return _table("packaged bases (give the name as --model)", BASE_HEADINGS, _bases())


def bases_markdown() -> str:
    """Return all bases as the Markdown table of the README."""
    return markdown_table(BASE_HEADINGS, _bases())


def _bases() -> list[list[str]]:
    return [
        [row["name"], f"{row['parameters']:,}", f"{row['bytes'] / 1e6:.1f}", row["card"]]
        for row in bases()
    ]


def _table(title: str, headings: tuple[str, ...], rows: list[list[str]]) -> Table:
    shown = Table(title=title)
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    return shown

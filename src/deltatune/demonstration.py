"""The first minute: the default recipe on a base that comes with the package, without a network."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from deltatune.data.offline.known_tasks import named
from deltatune.run import finetune

__all__ = ["run"]

MODEL = "deltatune/nano"
DATA = "deltatune/boxes"
# 141 steps of about a third of a second each on two cores. A base as small as this one wants a
# larger rate than the recipe's own, which is for larger ones.
SETTINGS = {"value_learning_rate": 1e-2}
SHOWN_ANSWERS = 3


def run(output: Path) -> dict[str, Any]:
    """Fine-tune `nano` on entity tracking, and show what it answers.

    Args:
        output: folder of the run; where it is taken, the next free number is put behind its name.

    Returns:
        The run's folder, metrics before and after, chance, and the wall time.
    """
    console = Console(stderr=True)
    task = named(DATA)[0]
    console.print(f"task: {task.title} ({task.level().what})")
    finished = finetune(
        MODEL, DATA, "efficientft", output=_free(output), assignments=SETTINGS, console=console
    )
    for prompt, answer, score in _answers(finished.folder):
        console.print(
            f"{prompt} → {answer} ({'right' if score else 'wrong'})", highlight=False, markup=False
        )
    return {
        "folder": str(finished.folder),
        "before": dict(finished.before),
        "after": dict(finished.after),
        "chance": task.level().chance,
        "wall_seconds": finished.costs["wall_seconds"],
    }


def _answers(folder: Path) -> list[tuple[str, str, float]]:
    """Return the first prompts of the test with the tuned model's answers and their scores."""
    scored = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    prompts = named(DATA)[0].load()["test"]["prompt"][:SHOWN_ANSWERS]
    items = scored["after"]["items"]
    return [
        (prompt, item["generated"].strip(), item["score"])
        for prompt, item in zip(prompts, items, strict=False)
    ]


def _free(folder: Path) -> Path:
    """Return the folder, or its name with the first number that no folder has."""
    names = itertools.chain([folder.name], (f"{folder.name}-{i}" for i in itertools.count(2)))
    return next(place for name in names if not (place := folder.with_name(name)).exists())

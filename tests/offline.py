"""A small offline task and a packaged base, put where the real ones are found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from deltatune import packaged_bases
from deltatune.data.offline import known_tasks
from deltatune.data.offline.offline_task import Level, OfflineTask
from tests.folders import model_folder

ANIMALS = ("cat", "dog", "hen")


def _score(generated: str, row: Mapping[str, Any]) -> float:
    return float(generated.strip() == row["animal"])


def _build(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    splits = {}
    for split, size in sizes.items():
        animals = [ANIMALS[(i + seed) % difficulty] for i in range(size)]
        splits[split] = datasets.Dataset.from_dict(
            {
                "question": [f"{split} {i}: a {animal}. Who?" for i, animal in enumerate(animals)],
                "reply": [f" {animal}" for animal in animals],
                "animal": animals,
            }
        )
    return datasets.DatasetDict(splits)


ECHO = OfflineTask(
    name="echo",
    title="which animal the question names",
    kind="completion",
    base="deltatune/nano",
    metric="right_animal",
    levels=(
        Level(what="one animal", chance=1.0),
        Level(what="two animals", chance=0.5),
        Level(what="three animals", chance=1 / 3, ceiling=0.75),
    ),
    difficulty=3,
    sizes={"train": 12, "validation": 4, "test": 6},
    columns={"prompt": "question", "completion": "reply"},
    build=_build,
    score=_score,
    answer_tokens=4,
)


def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `deltatune/nano` a tiny random Llama and `deltatune/echo` the only task."""
    folder = tmp_path / "bases" / "nano"
    folder.parent.mkdir()
    model_folder(folder)
    (folder / "README.md").write_text("---\nlicense: psf-2.0\n---\n\n# nano\n\nMade for a test.\n")
    monkeypatch.setattr(packaged_bases, "FOLDER", folder.parent)
    monkeypatch.setattr(known_tasks, "known", lambda: {"echo": ECHO})
    return folder

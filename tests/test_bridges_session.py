"""How a recipe's training settings reach transformers' Trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltatune.run import finetune
from tests.folders import completions, model_folder, rows_file


@pytest.mark.parametrize(("bound", "wanted"), [(0, 8), (3, 3), (50, 8)])
def test_steps_are_a_bound_beside_the_epochs(bound: int, wanted: int, tmp_path: Path) -> None:
    # 25 rows, 2 held back: 23 in batches of 3 are 8 micro-batches, in pairs 4 steps an epoch.
    settings = {
        "training.steps": bound,
        "training.epochs": 2,
        "training.batch_size": 3,
        "training.accumulation": 2,
        "training.max_length": 32,
    }
    rows = rows_file(tmp_path / "rows.jsonl", completions(25))
    llama = model_folder(tmp_path / "llama")
    run = finetune(llama, rows, output=tmp_path / "run", assignments=settings)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, wanted + 1))

"""What a run records of the request that it was given."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from deltatune.exporting import export
from deltatune.run import finetune
from tests.folders import completions, model_folder, rows_file


def test_run_of_relative_paths_is_exported_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "llama")
    rows_file(tmp_path / "pairs.jsonl", completions())
    monkeypatch.chdir(tmp_path)
    run = finetune(
        "llama",
        "pairs.jsonl",
        output="run",
        assignments={"training.steps": 1},
        console=Console(quiet=True),
    )
    assert run.folder == Path("run")
    monkeypatch.chdir(tmp_path / "llama")
    assert Path(export(tmp_path / "run", "merged").folder) == tmp_path / "run" / "export-merged"

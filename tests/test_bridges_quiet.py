"""What the libraries below would tell a user who cannot act on it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
from rich.console import Console
from transformers.utils import logging

import deltatune
from deltatune.bridges.quiet import quiet
from deltatune.exporting import export, load
from tests.folders import completions, model_folder, rows_file


@pytest.mark.parametrize("recipe", ["lora", "efficientft_full"])
def test_run_and_export_say_nothing_of_the_libraries(
    recipe: str, tmp_path: Path, capfd: Any
) -> None:
    llama = model_folder(tmp_path / "llama")
    pairs = rows_file(tmp_path / "pairs.jsonl", completions())
    capfd.readouterr()  # the bar of writing the base
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        deltatune.finetune(
            llama,
            pairs,
            recipe,
            output=tmp_path / "run",
            assignments={"training.steps": 1},
            console=Console(quiet=True),
        )
        load(tmp_path / "run")
        export(tmp_path / "run", "merged")
    assert [str(warning.message) for warning in warned] == []
    assert capfd.readouterr() == ("", "")


def test_quiet_gives_bars_back_only_to_whom_had_them() -> None:
    assert logging.is_progress_bar_enabled()
    assert not datasets.are_progress_bars_disabled()
    with quiet():
        assert not logging.is_progress_bar_enabled()
        assert datasets.are_progress_bars_disabled()
        with quiet():
            pass
        assert not logging.is_progress_bar_enabled()
        assert datasets.are_progress_bars_disabled()
    assert logging.is_progress_bar_enabled()
    assert not datasets.are_progress_bars_disabled()

"""The page of a finished run."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from deltatune.exporting import export
from deltatune.run import finetune
from tests.folders import completions, model_folder, rows_file


def test_page_shows_the_recipe_to_the_letter(tmp_path: Path) -> None:
    settings = {
        "training.steps": 1,
        "training.max_length": 32,
        "name": "[red] one",
    }
    rows = rows_file(tmp_path / "rows.jsonl", completions())
    llama = model_folder(tmp_path / "llama")
    run = finetune(llama, rows, output=tmp_path / "[run]", assignments=settings)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub("<[^>]*>", "", page))
    # Square brackets are markup to the library that draws the page.
    assert "name: '[red] one'" in text
    assert "[red] one: done" in text
    assert "deltatune run [run]" in text
    assert "loss before" in text


@pytest.mark.parametrize("recipe", ["prefix_tuning", "full"])
def test_report_suggests_an_export_that_works(recipe: str, tmp_path: Path) -> None:
    rows = rows_file(tmp_path / "rows.jsonl", completions())
    llama = model_folder(tmp_path / "llama")
    console = Console(file=io.StringIO(), width=200)
    settings = {"training.steps": 1, "training.max_length": 32}
    run = finetune(
        llama, rows, recipe, output=tmp_path / "run", assignments=settings, console=console
    )
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    (form,) = re.findall(r"try next: deltatune export \S+ --to (\w+)", shown)
    assert Path(export(run.folder, form).folder).is_dir()

"""The files beside `comparison.json`: all of them, from any comparison."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from deltatune.comparison.reporting import write_reports
from deltatune.comparison.reporting.contents import Comparison, read_comparison
from deltatune.comparison.reporting.page import page
from deltatune.comparison.reporting.tables import latex_table, recipes_csv, runs_csv
from deltatune.errors import InputError
from tests.comparison_records import NAMES, record, written

TEXTS = ["comparison.html", "comparison.csv", "runs.csv", "comparison.tex"]
DRAWN = ["pareto", "losses", "intervals", "heatmap"]


def comparison(content: dict[str, Any]) -> Comparison:
    return Comparison.model_validate(json.loads(json.dumps(content)))


def test_reports_are_all_written_and_nothing_else(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", record(NAMES[:3]))
    expected = [*TEXTS, *(f"{name}.{kind}" for name in DRAWN for kind in ("png", "svg"))]
    assert [path.name for path in write_reports(folder)] == expected
    assert {path.name for path in folder.iterdir()} == {*expected, "comparison.json"}
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (folder / "losses.svg").read_bytes()


def test_reports_refuse_a_folder_without_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no comparison\.json: give the folder"):
        write_reports(tmp_path)


def test_reading_refuses_another_format_and_a_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has format 2, known is 1"):
        read_comparison(written(tmp_path, {**record(NAMES[:1]), "format": 2}))
    with pytest.raises(InputError, match=r"recipes\.0\.name: .*make the comparison again"):
        read_comparison(written(tmp_path, {**record(NAMES[:1]), "recipes": [{"name": 3}]}))


def test_recipes_csv_has_a_line_per_recipe_best_first_with_statistics() -> None:
    content = record()
    lines = list(csv.DictReader(io.StringIO(recipes_csv(comparison(content)))))
    assert len(lines) == len(NAMES)
    assert [line["rank"] for line in lines] == [*"111", *(str(i) for i in range(3, 11)), ""]
    first = next(one for one in content["recipes"] if one["name"] == lines[0]["recipe"])
    assert float(lines[0]["score"]) == first["columns"]["score"]["mean"]
    assert float(lines[0]["score_low"]) == first["columns"]["score"]["low"]
    assert lines[0]["forgetting_low"] == ""
    assert (lines[-1]["recipe"], lines[-1]["status"], lines[-1]["score"]) == (
        "adalora",
        "failed",
        "",
    )


def test_runs_csv_has_a_line_per_run_with_its_message() -> None:
    content = record(NAMES[:3])
    lines = list(csv.DictReader(io.StringIO(runs_csv(comparison(content)))))
    assert [line["run"] for line in lines] == [run["name"] for run in content["runs"]]
    diverged = next(line for line in lines if line["run"] == "full-trial-2")
    assert (diverged["status"], diverged["score"]) == ("diverged", "")
    assert diverged["message"] == "the loss is not a number at step 12"


def test_page_embeds_everything_and_escapes_what_the_comparison_says() -> None:
    content = record(("</script><img src=x onerror=alert(1)>", "a & 'b'"), with_failures=False)
    text = page(comparison(content))
    assert "<img src=x" not in text
    assert "&lt;/script&gt;&lt;img src=x" in text
    # The one of the data, of plotly, and our three; each closed once.
    assert text.count("<script") - text.count('"<script') == text.count("</script>")
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in text


def test_latex_table_is_escaped_and_marks_ties() -> None:
    content = record(("a_b", "50 %", "c"), with_failures=True)
    content["recipes"][2]["name"] = "c#"
    text = latex_table(comparison(content))
    assert r"a\_b & \textbf{" in text
    assert r"50 \% & \textbf{" in text
    assert " & 1= & " in text
    assert r"c\# & \multicolumn{5}{l}{no final run finished} \\" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [row.count("&") for row in rows] == [5, 5, 5, 1]

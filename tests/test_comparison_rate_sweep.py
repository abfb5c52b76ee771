"""The sweep of rates: every pair once, resumed where it stood, shown as a heatmap."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deltatune.comparison import rate_sweep
from deltatune.comparison.rate_sweep import Cell, Sweep, rates_for_ratios, sweep
from deltatune.errors import Diverged, InputError
from tests.folders import completions
from tests.runs import SETTINGS


def cell(query: float, value: float, score: float | None, headline: str = "accuracy") -> Cell:
    if score is None:
        return Cell(
            query_learning_rate=query,
            value_learning_rate=value,
            scores={},
            headline="",
            diverged="the loss is nan",
        )
    return Cell(
        query_learning_rate=query,
        value_learning_rate=value,
        scores={headline: score},
        headline=headline,
    )


def test_sweep_trains_every_pair_once(llama: Path, pairs: Path, tmp_path: Path) -> None:
    def run(epochs: int = 1) -> Sweep:
        return sweep(
            llama,
            pairs,
            query_learning_rates=(1e-3, 4e-3),
            value_learning_rates=(4e-3,),
            output=tmp_path / "sweep",
            assignments={**SETTINGS, "training.epochs": epochs},
            console=Console(file=io.StringIO()),
        )

    found = run()
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]
    assert [(row["query_learning_rate"], row["ratio"]) for row in rows] == [(1e-3, 4), (4e-3, 1)]
    assert len({c.score for c in found.cells}) == 2, "another rate, another score"
    scores = tmp_path / "sweep" / "query-0.001_value-0.004" / "evaluation.json"
    assert json.loads(scores.read_text())["after"]["split"] == "validation"
    metrics = tmp_path / "sweep" / "query-0.001_value-0.004" / "metrics.jsonl"
    rates = json.loads(metrics.read_text().splitlines()[-1])["learning_rates"]
    assert rates["value"] == pytest.approx(4 * rates["query"])
    before = metrics.stat().st_mtime_ns
    assert run() == found
    assert metrics.stat().st_mtime_ns == before, "a finished trial is not trained again"
    assert "background-color" in (tmp_path / "sweep" / "sweep.html").read_text()
    with pytest.raises(InputError, match=r"holds trials with assignments=.*another output folder"):
        run(epochs=2)


def test_diverged_trial_is_a_row_and_stays_one(
    llama: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*_: Any, **__: Any) -> None:
        raise Diverged("the loss is nan")

    monkeypatch.setattr(rate_sweep, "finetune", diverging)
    rates = {"query_learning_rates": (1e-3,), "value_learning_rates": (4e-3,)}
    found = sweep(
        llama, pairs, output=tmp_path / "sweep", console=Console(file=io.StringIO()), **rates
    )
    assert found.cells[0].diverged == "the loss is nan"
    monkeypatch.undo()
    again = sweep(
        llama, pairs, output=tmp_path / "sweep", console=Console(file=io.StringIO()), **rates
    )
    assert again == found


def test_sweep_is_not_continued_on_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*_: Any, **__: Any) -> None:
        raise Diverged("the loss is nan")

    monkeypatch.setattr(rate_sweep, "finetune", diverging)

    def run(rows: Any) -> Sweep:
        return sweep(
            "model",
            rows,
            query_learning_rates=(1e-3,),
            value_learning_rates=(4e-3,),
            output=tmp_path / "sweep",
            console=Console(file=io.StringIO()),
        )

    rows = completions(25)
    assert run(rows) == run(rows)
    with pytest.raises(InputError, match="holds trials with data_fingerprint="):
        run([*rows[:-1], {"prompt": "another", "completion": "one"}])


def test_best_is_the_highest_accuracy_or_the_lowest_loss() -> None:
    cells = (cell(1, 1, 0.6), cell(1, 2, 0.9), cell(1, 4, None))
    assert Sweep(cells).best is cells[1]
    losses = (cell(1, 1, 0.6, "loss"), cell(1, 2, 0.9, "loss"))
    assert Sweep(losses).best is losses[0]
    with pytest.raises(Diverged, match="every pair of rates diverged"):
        Sweep((cell(1, 4, None),)).best  # noqa: B018 - a property that raises


def test_heatmap_has_the_value_downwards_and_the_query_to_the_right() -> None:
    cells = (cell(1e-4, 1e-4, 0.5), cell(1e-4, 4e-4, 0.75), cell(5e-5, 4e-4, None))
    console = Console(file=io.StringIO(), width=80)
    console.print(Sweep(cells).heatmap())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    rows = [line.replace("│", " ").replace("┃", " ").split() for line in lines]
    assert ["value", "\\", "query", "5e-05", "0.0001"] in rows
    assert rows.index(["0.0004", "diverged", "0.7500"]) < rows.index(["0.0001", "0.5000"])


def test_rates_for_ratios_hold_the_value_s_rate() -> None:
    assert rates_for_ratios(8e-4, (1, 2, 4, 8)) == pytest.approx((8e-4, 4e-4, 2e-4, 1e-4))


def test_sweep_without_rates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the sweep has no rates"):
        sweep("m", "d", query_learning_rates=(), value_learning_rates=(1,), output=tmp_path)


def test_sweep_that_lost_its_file_takes_finished_runs_and_a_collapse_as_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = {"after": {"headline": "accuracy", "metrics": {"accuracy": 0.75}}, "collapse": ""}
    ends = {1e-3: done, 2e-3: {**done, "collapse": "after 60 steps one class for all"}}
    for query, result in ends.items():
        trial = tmp_path / "sweep" / f"query-{query:g}_value-0.004"
        trial.mkdir(parents=True)
        (trial / "evaluation.json").write_text(json.dumps(result))

    def training(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr(rate_sweep, "finetune", training)
    found = sweep(
        "model",
        completions(25),
        query_learning_rates=tuple(ends),
        value_learning_rates=(4e-3,),
        output=tmp_path / "sweep",
        console=Console(file=io.StringIO()),
    )
    assert [cell.score for cell in found.cells] == [0.75, None]
    assert found.cells[1].diverged == "after 60 steps one class for all"

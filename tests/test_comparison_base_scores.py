"""What the base scores is measured once for all runs of a comparison, and is each run's own."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deltatune import run_scores
from deltatune.comparison import comparing, forgetting, worker
from deltatune.comparison.base_scores import BaseScores
from deltatune.comparison.jobs import Job
from deltatune.files import write_json_atomically
from deltatune.run_folder import RunFolder
from tests.folders import classifications, completions, model_folder, rows_file


class Counted:
    """Carries out runs in this process, and counts how often a model is scored."""

    def __init__(self, monkeypatch):
        self.calls = {"run": 0, "held out": 0}
        self._count(monkeypatch, run_scores, "run")
        self._count(monkeypatch, forgetting, "held out")

    def _count(self, monkeypatch, module, name):
        evaluate = module.evaluate

        def counting(*given, **options):
            self.calls[name] += 1
            return evaluate(*given, **options)

        monkeypatch.setattr(module, "evaluate", counting)

    def __call__(self, orders, console):
        for order in orders:
            worker.work(order).save(order.folder.path.parent, order.job)


@pytest.fixture(autouse=True)
def _no_page(monkeypatch):
    monkeypatch.setattr(comparing, "write_reports", lambda folder: [])


def before(folder, name):
    run = RunFolder(folder / "runs" / name)
    return run.read(run.evaluation)["before"]


def test_the_base_is_scored_once_for_each_part_and_seed(tmp_path, monkeypatch):
    model = model_folder(tmp_path / "bert", "bert", "base")  # has no head for classes
    data = rows_file(tmp_path / "sorts.jsonl", classifications(60))
    engine = Counted(monkeypatch)
    out = tmp_path / "out"
    comparing.compare(
        model,
        data,
        "lora,ia3",
        budget="tokens=2000",
        seeds=2,
        trials=2,
        output=out,
        assignments={"training.batch_size": 4, "training.max_length": 32},
        engine=engine,
        console=Console(file=io.StringIO(), width=200),
    )
    # Eight runs are scored after training; before it validation with one head and test with two.
    assert engine.calls["run"] == 8 + 3
    assert before(out, "lora-final-seed-0") == before(out, "ia3-final-seed-0")
    assert before(out, "lora-final-seed-0") != before(out, "lora-final-seed-1")
    assert before(out, "lora-final-seed-0")["split"] == "test"
    assert before(out, "lora-trial-0-seed-0") == before(out, "ia3-trial-1-seed-0")
    assert before(out, "lora-trial-0-seed-0")["split"] == "validation"


def test_the_loss_on_held_out_text_is_measured_once_of_the_base(tmp_path, monkeypatch):
    engine = Counted(monkeypatch)
    texts = rows_file(tmp_path / "texts.jsonl", [{"text": "the box has a key and a lamp"}] * 8)
    made = comparing.compare(
        model_folder(tmp_path / "llama"),
        rows_file(tmp_path / "pairs.jsonl", completions(80)),
        "lora,ia3",
        budget="tokens=2000",
        seeds=2,
        trials=1,
        output=tmp_path / "out",
        forgetting=texts,
        assignments={"training.batch_size": 4, "training.max_length": 32},
        engine=engine,
        console=Console(file=io.StringIO(), width=200),
    )
    assert engine.calls["held out"] == 4 + 1
    for recipe in made.record["recipes"]:
        run = tmp_path / "out" / "runs" / f"{recipe['name']}-final-seed-1"
        alone = forgetting.forgetting(run, str(tmp_path / "out" / "forgetting"))
        assert recipe["columns"]["forgetting"]["values"][1] == pytest.approx(alone.rise, abs=1e-6)


def test_cells_of_a_sweep_may_see_another_base_and_share_nothing(tmp_path):
    scores = BaseScores(tmp_path / "base")
    run = RunFolder(tmp_path)
    write_json_atomically(run.evaluation, {"before": {"metrics": {"loss": 2.0}}})
    cell = Job(recipe="lora", kind="cell", settings={}, seed=0, scored_on="validation")
    trial = Job(recipe="lora", kind="trial", settings={}, seed=0, scored_on="validation")
    scores.keep_before(cell, run)
    assert scores.before(trial) is None
    scores.keep_before(trial, run)
    assert scores.before(trial) == {"metrics": {"loss": 2.0}}
    assert scores.before(cell) is None

"""The table at the end of a comparison fits a terminal and leaves nothing out."""

from __future__ import annotations

import io

from rich.console import Console

from deltatune.comparison.ended import ended
from deltatune.comparison.jobs import Outcome
from deltatune.comparison.result_table import result_table
from deltatune.comparison.results import record
from tests import comparisons
from tests.comparisons import drawn, finished


def shown(found, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(result_table(found))
    return console.file.getvalue()


def test_result_table_orders_by_rank_and_puts_failures_last(tmp_path):
    plan = comparisons.plan("dora,full,lora")
    jobs = plan.first_jobs()
    for job in jobs:
        if job.recipe == "dora":
            Outcome(status="diverged", message="so").save(tmp_path, job)
        else:
            share = {"full": 0.3, "lora": 0.7}[job.recipe]
            finished(tmp_path, job, drawn(share, job.recipe, job.seed))
    text = shown(record(plan, ended(tmp_path, jobs), []))
    assert text.index("lora") < text.index("full") < text.index("dora")
    assert "failed" in text
    assert "…" not in text


def test_result_table_of_a_sweep_is_its_grid(tmp_path):
    fields = {"optimizer.learning_rate": [1e-3, 1e-2], "delta.rank": [2, 4]}
    plan = comparisons.plan("lora", seeds=(0,), sweep=fields)
    jobs = plan.first_jobs()
    Outcome(status="diverged", message="the loss is nan").save(tmp_path, jobs[0])
    for job in jobs[1:]:
        finished(tmp_path, job, drawn(0.5, "same", 0))
    text = shown(record(plan, ended(tmp_path, jobs), []))
    assert "delta.rank" in text
    assert "diverged" in text
    assert text.count(f"{ended(tmp_path, jobs)[1].score:.4f}") == 3

"""Folders of runs as a comparison leaves them, with scores that are drawn, not trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltatune.comparison.budget import Budget
from deltatune.comparison.comparison_plan import ComparisonPlan
from deltatune.comparison.contestants import contestants
from deltatune.comparison.expectations import Expectation
from deltatune.comparison.jobs import Job, Outcome
from deltatune.comparison.terms import Terms
from deltatune.comparison.worker import Order
from deltatune.request import Request

EXPECTED = Expectation(
    steps=4,
    epochs=1.0,
    tokens=400.0,
    flops=1e9,
    seconds=2.0,
    memory_bytes=1000,
    trainable_parameters=10,
)
COSTS = {
    "trainable_parameters": 10,
    "trainable_parameters_ever": 12,
    "adapter_bytes": 400,
    "optimizer_bytes": 80,
    "peak_memory_above_base_bytes": 1500,
    "median_step_seconds": 0.5,
    "tokens": 300,
    "tokens_per_second": 200.0,
    "wall_seconds": 2.0,
    "micro_batch_flops_predicted_to_counted_ratio": 0.9,
}


def plan(
    recipes: str = "lora,full",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    trials: int = 1,
    sweep: Mapping[str, Sequence[Any]] | None = None,
) -> ComparisonPlan:
    """Return a plan that expects the same of every recipe."""
    found = contestants(recipes, {})
    terms = Terms(
        budget=Budget.read("tokens=1200"), seeds=tuple(seeds), trials=trials, sweep=sweep or {}
    )
    return ComparisonPlan(
        request=Request(model="a model", data="some data"),
        contestants=tuple(found),
        terms=terms,
        expected={one.name: EXPECTED for one in found},
        fingerprint="f",
    )


def finished(
    runs: Path, job: Job, items: Sequence[Mapping[str, Any]], headline: str = "accuracy"
) -> None:
    """Write what a finished run leaves; the score is the mean of the items."""
    key = {"accuracy": "correct", "loss": "loss"}[headline]
    score = float(np.mean([float(item[key]) for item in items]))
    after = {
        "split": job.scored_on,
        "examples": len(items),
        "headline": headline,
        "higher_is_better": headline == "accuracy",
        "chance": None,
        "ceiling": None,
        "metrics": {headline: score},
        "items": list(items),
    }
    folder = runs / job.name
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({"before": after, "after": after}))
    (folder / "costs.json").write_text(json.dumps(COSTS))
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Outcome(status="finished").save(runs, job)


def drawn(rate: float, name: str, seed: int, items: int = 300) -> list[dict[str, Any]]:
    """Return items of which a share is answered rightly; hard items are hard for everybody."""
    hardness = np.random.default_rng(99).random(items)
    noise = np.random.default_rng([seed, *name.encode()]).random(items)
    right = 0.8 * hardness + 0.2 * noise < rate
    return [{"correct": bool(one), "loss": float(1 - one)} for one in right]


def order(runs: Path, job: Job, recipe: Mapping[str, Any]) -> Order:
    """Return what a process is told of one run, of a model and data that nobody loads."""
    return Order(
        job=job,
        recipe=recipe,
        runs=str(runs),
        model="m",
        data="d",
        columns=None,
        task=None,
        metric="",
        allow_remote_code=False,
        forgetting_data="",
        grid_intensity=None,
    )

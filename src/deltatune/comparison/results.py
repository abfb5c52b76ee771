"""From the folders of finished runs to `comparison.json`: columns, intervals, ranks."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltatune.comparison import columns
from deltatune.comparison.comparison_plan import RATE, ComparisonPlan
from deltatune.comparison.ended import Ended, chosen_rate
from deltatune.comparison.environment import environment
from deltatune.comparison.evaluation import lower_is_better
from deltatune.comparison.item_scores import item_scores
from deltatune.comparison.jobs import Outcome
from deltatune.comparison.run_conditions import differing_conditions
from deltatune.comparison.significance import (
    Difference,
    Table,
    compare_pair,
    compare_pairs,
    ranks,
)
from deltatune.comparison.sweep_grid import sweep_grid
from deltatune.run_folder import RunFolder

__all__ = ["record"]

FORMAT = 1
LOSS_POINTS = 200


def record(
    plan: ComparisonPlan, everything: Sequence[Ended], notes: Sequence[str]
) -> dict[str, Any]:
    """Return the content of `comparison.json`.

    Args:
        plan: of the comparison.
        everything: every job that was planned, ended or not.
        notes: of the plan and the data.
    """
    finals = {
        one.name: [e for e in everything if e.job.recipe == one.name and e.job.kind == "final"]
        for one in plan.contestants
    }
    whole = {
        name: jobs for name, jobs in finals.items() if jobs and all(e.is_finished for e in jobs)
    }
    first = next((e.evaluation for e in everything if e.is_finished), None)
    headline = first["headline"] if first else ""
    higher = not lower_is_better(headline)
    tables, of_what = _tables(whole)
    sign = 1.0 if higher else -1.0
    pairs = compare_pairs({name: sign * table for name, table in tables.items()})
    places = ranks(list(tables), pairs)
    return {
        "format": FORMAT,
        **_about(plan),
        "metric": headline,
        "higher_is_better": higher,
        "chance": first and first["chance"],
        "ceiling": first and first["ceiling"],
        **plan.terms.to_dict(),
        "columns": columns.columns_for(headline, higher_is_better=higher),
        "recipes": [
            _recipe(plan, one.name, finals[one.name], everything, tables, places)
            for one in plan.contestants
        ],
        "runs": [_run(plan, e) for e in everything],
        "differences": [_plain(_turned(pair, sign)) for pair in pairs],
        "sweep": sweep_grid(plan, everything),
        "plan": _plan(plan, everything, notes),
        "environment": environment(),
        "notes": [*notes, *_notes(everything, headline, of_what)],
    }


def _about(plan: ComparisonPlan) -> dict[str, Any]:
    names = ", ".join(one.name for one in plan.contestants)
    data = plan.data_name or str(plan.request.data)
    return {
        "title": f"{names} on {data} with {plan.request.model}",
        "model": str(plan.request.model),
        "data": data,
        "task": plan.request.task,
    }


def _plan(
    plan: ComparisonPlan, everything: Sequence[Ended], notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "jobs": [e.job.to_dict() for e in everything],
        "predicted": {
            name: {
                "seconds": expected.seconds * plan.terms.runs,
                "memory_bytes": expected.memory_bytes,
            }
            for name, expected in plan.expected.items()
        },
        "expected": {n: dataclasses.asdict(one) for n, one in plan.expected.items()},
        "lines": list(notes),
    }


def _notes(everything: Sequence[Ended], headline: str, of_what: str) -> list[str]:
    """Return what a reader should know of the runs as they were made."""
    notes = []
    if of_what not in ("", headline):
        notes.append(f"recipes are compared by {of_what}: {headline} belongs to no single item")
    notes += differing_conditions(_alike(everything))
    return notes + sorted({note for e in everything if (note := _energy_note(e.outcome))})


def _alike(everything: Sequence[Ended]) -> list[list[RunFolder]]:
    """Return the folders of finished runs, of a recipe or of a sweep's cell together."""
    groups: dict[tuple[str, int], list[RunFolder]] = {}
    for one in everything:
        number = one.job.number if one.job.kind == "cell" else 0
        if one.is_finished:
            groups.setdefault((one.job.recipe, number), []).append(one.folder)
    return list(groups.values())


def _energy_note(outcome: Outcome) -> str:
    source = outcome.measured.get("energy_source", "")
    what = outcome.measured.get("energy_measured", "")
    return f"energy: {source}" + (f", {what}" if what else "") if source else ""


def _tables(finals: Mapping[str, Sequence[Ended]]) -> tuple[dict[str, Table], str]:
    """Return the items' scores of every recipe, `(seeds, items)`, and what they are."""
    tables, what = {}, ""
    for name, jobs in finals.items():
        rows = []
        for one in jobs:
            scores, what = item_scores(one.evaluation)
            rows.append(scores)
        tables[name] = np.stack(rows)
    return tables, what


def _recipe(
    plan: ComparisonPlan,
    name: str,
    finals: Sequence[Ended],
    everything: Sequence[Ended],
    tables: Mapping[str, Table],
    places: Mapping[str, int],
) -> dict[str, Any]:
    """Return one recipe's line."""
    finished = [one for one in finals if one.is_finished]
    trials = [one for one in everything if one.job.recipe == name and one.job.kind == "trial"]
    has_cells = any(one.job.kind == "cell" and one.is_finished for one in everything)
    own = next(one for one in plan.contestants if one.name == name)
    return {
        "name": name,
        "status": "finished" if finished or has_cells else "failed",
        "learning_rate": finished[0].rate if finished else None,
        "rank": places.get(name),
        "columns": _statistics(plan, finished, tables.get(name)) if finished else {},
        "notes": _recipe_notes(finals, trials),
        "recipe": own.recipe.to_plain(),
    }


def _recipe_notes(finals: Sequence[Ended], trials: Sequence[Ended]) -> list[str]:
    notes = []
    rates = [one.rate for one in trials]
    rate = chosen_rate(trials)
    for edge, word in ((min, "smallest"), (max, "largest")):
        if len(rates) > 1 and rate == edge(rates):
            notes.append(f"its best learning rate, {rate:g}, is the {word} that was tried")
    if trials and rate is None:
        notes.append("no trial of a learning rate finished")
    for one in (*trials, *finals):
        if not one.is_finished and one.outcome.status != "waiting":
            ended_so = f"{one.job.name} {one.outcome.status}: {one.outcome.message}"
            notes.append(ended_so)
    lost = sum(not one.is_finished for one in finals)
    if 0 < lost < len(finals):
        notes.append(f"{lost} of {len(finals)} final runs did not finish: it has no rank")
    told = {one.outcome.measured.get("forgetting_note") for one in finals if one.is_finished}
    return notes + sorted(note for note in told if note)


def _statistics(
    plan: ComparisonPlan, finished: Sequence[Ended], table: Table | None
) -> dict[str, Any]:
    """Return each column's mean, spread and values over the seeds, the score's with an interval."""
    of_runs = [_columns(plan, one) for one in finished]
    found: dict[str, Any] = {}
    for column in columns.COLUMNS:
        values = [run[column.name] for run in of_runs]
        known = [value for value in values if value is not None]
        if known:
            found[column.name] = {
                "mean": statistics.mean(known),
                "spread": statistics.stdev(known) if len(known) > 1 else None,
                "low": None,
                "high": None,
                "values": values,
            }
    if table is not None and len(table) > 1:
        found["score"] |= _interval(table, found["score"]["mean"])
    return found


def _interval(table: Table, score: float) -> dict[str, float | None]:
    """Return the interval of a score; none where it is not the mean of what belongs to items."""
    if not math.isclose(float(table.mean()), score, rel_tol=1e-6, abs_tol=1e-9):
        return {}
    against = {"score": table, "zero": np.zeros_like(table)}
    found = compare_pair("score", "zero", against)
    low, high = found.low, found.high
    if 0 <= table.min() and table.max() <= 1:  # a share of items: two seeds say little, not more
        low, high = max(low, 0.0), min(high, 1.0)
    return {"low": _finite(low), "high": _finite(high)}


def _columns(plan: ComparisonPlan, one: Ended) -> dict[str, float | None]:
    costs = one.folder.read(one.folder.costs)
    expected = plan.expected[one.job.recipe]
    ratio = costs["micro_batch_flops_predicted_to_counted_ratio"]
    trained = costs["tokens"] / expected.tokens  # an epoch's last step may be smaller than the rest
    # What was expected is of the recipe itself, and a cell's settings may change its size.
    of_recipe = {
        "flops": expected.flops * trained,
        "predicted_flops": expected.flops * ratio,
        "predicted_memory_bytes": expected.memory_bytes,
        "predicted_seconds": expected.seconds,
    }
    others = {**one.outcome.measured, **({} if one.job.kind == "cell" else of_recipe)}
    return columns.of_run(one.evaluation, costs, others)


def _run(plan: ComparisonPlan, one: Ended) -> dict[str, Any]:
    """Return one run's line."""
    job = one.job
    return {
        "name": job.name,
        "recipe": job.recipe,
        "kind": job.kind,
        "learning_rate": job.settings.get(RATE),
        "seed": job.seed,
        "settings": dict(job.settings),
        "scored_on": job.scored_on,
        "status": one.outcome.status,
        "message": one.outcome.message,
        "score": one.score if one.is_finished else None,
        "losses": _losses(one.folder),
        "columns": _columns(plan, one) if one.is_finished else {},
        "measured": dict(one.outcome.measured),
    }


def _losses(folder: RunFolder) -> list[list[float | None]]:
    """Return step and loss, of long runs means over equal parts."""
    rows = folder.read_metrics()
    stride = max(-(-len(rows) // LOSS_POINTS), 1)
    points: list[list[float | None]] = []
    for start in range(0, len(rows), stride):
        part = rows[start : start + stride]
        loss = statistics.mean(row["loss"] for row in part)
        points.append([part[-1]["step"], _finite(loss)])
    return points


def _turned(pair: Difference, sign: float) -> Difference:
    """Give a difference the direction of the metric, where lower is better."""
    if sign > 0:
        return pair
    return dataclasses.replace(pair, mean=-pair.mean, low=-pair.high, high=-pair.low)


def _plain(pair: Difference) -> dict[str, Any]:
    values = dataclasses.asdict(pair)
    return {
        **{k: v if isinstance(v, str) else _finite(v) for k, v in values.items()},
        "is_significant": pair.is_significant,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

"""Which way of fine-tuning is best here? Every recipe at an equal budget, with statistics."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from deltatune.bridges.quiet import quiet
from deltatune.comparison import results
from deltatune.comparison.budget import Budget
from deltatune.comparison.comparison_plan import ComparisonPlan, recorded_expectations
from deltatune.comparison.contestants import Contestant, Given, contestants
from deltatune.comparison.data_parts import DataParts, data_parts
from deltatune.comparison.ended import chosen_rate, ended
from deltatune.comparison.energy import EnergyMeter
from deltatune.comparison.engines import Engine, engine_named
from deltatune.comparison.expectations import expectations, warnings_of
from deltatune.comparison.forgetting import held_out_data
from deltatune.comparison.jobs import Job
from deltatune.comparison.reporting import write_reports
from deltatune.comparison.result_table import result_table
from deltatune.comparison.terms import Terms
from deltatune.comparison.worker import Order
from deltatune.data.loading import load as load_examples
from deltatune.errors import InputError
from deltatune.file_lock import held, locks_work
from deltatune.files import write_json_atomically
from deltatune.notes import tell
from deltatune.request import Request

__all__ = ["Comparison", "compare"]

LOCK = "comparison.lock"
UNLOCKED = (
    "this file system locks no files: see to it that no second comparison writes to the same folder"
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison on disk.

    Args:
        folder: where everything lies.
        record: the content of `comparison.json`; of a dry run the plan alone.
    """

    folder: Path
    record: Mapping[str, Any]


@quiet()
def compare(
    model: str | Path,
    data: Any,
    recipes: Given,
    *,
    budget: str | Budget,
    output: str | Path,
    seeds: int | Sequence[int] = 3,
    trials: int = 3,
    assignments: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    metric: str = "",
    forgetting: str = "",
    grid_intensity: float | None = None,
    allow_remote_code: bool = False,
    engine: str | Engine = "local",
    address: str = "",
    dry_run: bool = False,
    console: Console | None = None,
) -> Comparison:
    """Compare recipes on a model and data: the same tokens in the same order, the same budget.

    Of each recipe as many learning rates are tried, on a grid about its own, scored on the
    validation part; the best trains once for each seed and is scored on the test part. All runs of
    a recipe share its budget evenly. Called again on the same folder it goes on where it was: what
    finished is not repeated. What diverges or crashes is a line that says so.

    Args:
        model: as for `finetune`.
        data: as for `finetune`; parts that it lacks are split off once, for all.
        recipes: `"full,lora,mine=my.yaml,small=lora:delta.rank=2"`, a sequence, or a mapping of
            name -> such a name or a `Recipe`.
        budget: `"tokens=2e6"`, `"minutes=30"` or `"flops=1e15"` of training for each recipe,
            trials included.
        output: folder of the comparison.
        seeds: how many final runs of each recipe (seeds 0, 1, ...), or the seeds themselves.
        trials: learning rates tried for each recipe; 1 takes its own.
        assignments: fields of `training` that all share -> value.
        sweep: field -> values, one field or two: a grid of runs of one recipe, scored on the
            validation part, in place of trials and final runs.
        columns: as for `finetune`.
        task: as for `finetune`.
        metric: as for `finetune`.
        forgetting: data of what the base could do before; the base's own held-out set if not given.
        grid_intensity: kilograms of CO2e for a kilowatt-hour where this runs.
        allow_remote_code: as for `finetune`.
        engine: what carries out the runs: `local`, one after another, or `ray`, on a cluster.
        address: of the cluster, `HOST:PORT` or `auto`; `ray` starts one here without it.
        dry_run: stop after the plan.
        console: where to show progress; the terminal's standard error if not given.

    Raises:
        InputError: anything wrong with the inputs, before anything runs.
        Interrupted: asked to stop; the same call goes on.
    """
    console = console or Console(stderr=True)
    folder = Path(output)
    terms = Terms(
        budget=budget if isinstance(budget, Budget) else Budget.read(budget),
        seeds=tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        trials=trials,
        sweep=dict(sweep or {}),
    )
    chosen = contestants(recipes, assignments or {})
    _check_sweep(chosen, terms)
    carried_out_by = engine_named(engine, address)
    EnergyMeter(grid_intensity=grid_intensity)  # refuses what is no intensity
    if forgetting:
        load_examples(forgetting)
    _check_folder(folder)
    request = Request(
        model=model,
        data=data,
        columns=columns,
        task=task,
        allow_remote_code=allow_remote_code,
        metric=metric,
    )
    beside = {"forgetting": str(forgetting), "grid_intensity": grid_intensity}
    with _worked_on(folder, console):
        plan, notes = _planned(request, chosen, terms, beside, folder, console)
        if dry_run:
            return Comparison(folder=folder, record={"plan": plan.to_dict(), "notes": notes})
        kept = held_out_data(model, forgetting or None, folder / "forgetting")
        options = {"forgetting_data": kept, "grid_intensity": grid_intensity}
        return _carried_out(plan, folder, notes, options, carried_out_by, console)


def _check_sweep(chosen: Sequence[Contestant], terms: Terms) -> None:
    """Refuse a sweep of several recipes, or one with a setting that the recipe has not."""
    if terms.sweep and len(chosen) > 1:
        names = ", ".join(one.name for one in chosen)
        raise InputError(f"a sweep is of one recipe, and {names} are given: name one")
    for settings in terms.grid():
        chosen[0].at(settings)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {str(folder)!r} is a file: give the path of a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "plan.json").is_file():
        ours = {"data", LOCK}  # of a comparison that was stopped before its plan was written
        if {entry.name for entry in folder.iterdir()} - ours:
            raise InputError(
                f"output {str(folder)!r} is not empty and holds no comparison: give another folder"
            )


@contextlib.contextmanager
def _worked_on(folder: Path, console: Console) -> Iterator[None]:
    """Hold the folder alone; bad input that shows before the plan stands leaves nothing behind."""
    folder.mkdir(parents=True, exist_ok=True)
    if not locks_work(folder):
        tell(console, [UNLOCKED])
    try:
        with held(folder / LOCK, f"output {str(folder)!r}"):
            yield
    except InputError:
        if not (folder / "plan.json").exists() and not (folder / LOCK).exists():
            shutil.rmtree(folder / "data", ignore_errors=True)
            with contextlib.suppress(OSError):  # something else lies there
                folder.rmdir()
        raise


def _planned(
    asked: Request,
    chosen: Sequence[Contestant],
    terms: Terms,
    beside: Mapping[str, Any],
    folder: Path,
    console: Console,
) -> tuple[ComparisonPlan, list[str]]:
    """Return the plan, as it was when the comparison began, and what a reader should know."""
    parts = data_parts(asked.data, folder / "data", columns=asked.columns, task=asked.task)
    request = dataclasses.replace(asked, data=parts.source, columns=parts.columns, task=parts.task)
    plan = ComparisonPlan(
        request=request,
        contestants=tuple(chosen),
        terms=terms,
        expected={},
        fingerprint=parts.examples.fingerprint,
        data_name=parts.name,
        beside=beside,
    )
    expected = recorded_expectations(folder, plan)
    plan = plan.expecting(expected or expectations(request, chosen, terms, console))
    plan.save(folder)
    notes = _notes(plan, parts)
    console.print(plan.table())
    tell(console, notes)
    return plan, notes


def _notes(plan: ComparisonPlan, parts: DataParts) -> list[str]:
    notes = list(parts.notes)
    for one in plan.contestants:
        notes += [f"{one.name}: {note}" for note in one.notes]
        notes += warnings_of(one.name, plan.expected[one.name])
    if len(plan.terms.seeds) == 1 and not plan.terms.sweep:
        notes.append(
            "one seed: there are no intervals, and no two recipes can be told apart; give three"
        )
    return notes


def _carried_out(
    plan: ComparisonPlan,
    folder: Path,
    notes: Sequence[str],
    options: Mapping[str, Any],
    engine: Engine,
    console: Console,
) -> Comparison:
    """Run what has not ended yet, first the trials, then the final runs at the best rates."""
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    jobs = plan.first_jobs()
    _run(plan, jobs, runs, options, engine, console)
    if any(job.kind == "trial" for job in jobs):
        finals = _final_jobs(plan, jobs, runs)
        _run(plan, finals, runs, options, engine, console)
        jobs = [*jobs, *finals]
    made = results.record(plan, ended(runs, jobs), notes)
    write_json_atomically(folder / "comparison.json", made)
    write_reports(folder)
    console.print(result_table(made))
    return Comparison(folder=folder, record=made)


def _final_jobs(plan: ComparisonPlan, trials: Sequence[Job], runs: Path) -> list[Job]:
    found = []
    for one in plan.contestants:
        own = ended(runs, [job for job in trials if job.recipe == one.name])
        rate = chosen_rate(own)
        if rate is not None:
            found += plan.final_jobs(one.name, rate)
    return found


def _run(
    plan: ComparisonPlan,
    jobs: Sequence[Job],
    runs: Path,
    options: Mapping[str, Any],
    engine: Engine,
    console: Console,
) -> None:
    waiting = [one.job for one in ended(runs, jobs) if not one.outcome.has_ended]
    request = plan.request
    orders = [
        Order(
            job=job,
            recipe=plan.recipe_of(job).to_plain(),
            runs=str(runs),
            model=str(request.model),
            data=str(request.data),
            columns=request.columns,
            task=request.task,
            metric=request.metric,
            allow_remote_code=request.allow_remote_code,
            **options,
        )
        for job in waiting
    ]
    if orders:
        engine(orders, console)

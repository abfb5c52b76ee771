"""What a comparison will do: every run, and its share of the budget."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from deltatune.comparison.contestants import Contestant
from deltatune.comparison.expectations import Expectation
from deltatune.comparison.jobs import Job
from deltatune.comparison.terms import Terms
from deltatune.errors import InputError
from deltatune.files import write_json_atomically
from deltatune.recipe import Recipe, from_plain
from deltatune.request import Request
from deltatune.run_folder import RunFolder

__all__ = ["RATE", "ComparisonPlan", "recorded_expectations"]

RATE = "optimizer.learning_rate"
FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """A comparison that has been checked and only needs to run.

    Args:
        request: model and data.
        contestants: what is compared.
        terms: that hold for all.
        expected: by name of contestant.
        fingerprint: of the data.
        data_name: of what was given, for readers.
        beside: what else is measured with, name -> plain value; a folder has it alike throughout.
    """

    request: Request
    contestants: tuple[Contestant, ...]
    terms: Terms
    expected: Mapping[str, Expectation]
    fingerprint: str
    data_name: str = ""
    beside: Mapping[str, Any] = field(default_factory=dict)

    def expecting(self, expected: Mapping[str, Expectation]) -> ComparisonPlan:
        """Return the plan with what its runs are expected to take."""
        return dataclasses.replace(self, expected=expected)

    def first_jobs(self) -> list[Job]:
        """Return the runs that wait for no other: the trials, or all cells, or all final runs."""
        if self.terms.sweep:
            return self._cells()
        if self.terms.trials > 1:
            return [job for one in self.contestants for job in self._trials(one)]
        return [
            job for one in self.contestants for job in self.final_jobs(one.name, one.learning_rate)
        ]

    def final_jobs(self, name: str, rate: float) -> list[Job]:
        """Return the runs from which a recipe's result comes."""
        settings = {RATE: rate}
        return [
            Job(recipe=name, kind="final", settings=settings, seed=seed, scored_on="test")
            for seed in self.terms.seeds
        ]

    def _trials(self, one: Contestant) -> list[Job]:
        return [
            Job(
                recipe=one.name,
                kind="trial",
                settings={RATE: rate},
                seed=self.terms.seeds[0],
                scored_on="validation",
                number=i,
            )
            for i, rate in enumerate(one.rates(self.terms.trials))
        ]

    def _cells(self) -> list[Job]:
        return [
            Job(
                recipe=one.name,
                kind="cell",
                settings=settings,
                seed=seed,
                scored_on="validation",
                number=i,
            )
            for i, settings in enumerate(self.terms.grid())
            for one in self.contestants
            for seed in self.terms.seeds
        ]

    def recipe_of(self, job: Job) -> Recipe:
        """Return the recipe of one run, with its share of the budget."""
        one = next(one for one in self.contestants if one.name == job.recipe)
        expected = self.expected[job.recipe]
        examples = _examples_of_step(one.recipe), _examples_of_step(one.at(job.settings))
        return one.at(
            {
                **job.settings,
                "training.seed": job.seed,
                # Of a sweep's cell whose steps are larger, fewer: it sees as many examples.
                "training.steps": max(1, expected.steps * examples[0] // examples[1]),
                "training.epochs": float(math.ceil(expected.epochs) + 1),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: equal for two plans that do the same on the same data."""
        return {
            "model": str(self.request.model),
            "data": str(self.request.data),
            "columns": dict(self.request.columns or {}),
            "data_fingerprint": self.fingerprint,
            "task": self.request.task,
            "metric": self.request.metric,
            "allow_remote_code": self.request.allow_remote_code,
            **self.terms.to_dict(),
            "recipes": {one.name: one.recipe.to_plain() for one in self.contestants},
        }

    def table(self) -> Table:
        """Show each recipe's runs and what they are expected to take."""
        runs, minutes = self.terms.runs * len(self.contestants), 0.0
        shown = Table(title="plan: the same for every recipe, per seed", title_justify="left")
        for heading in ("recipe", "rates", "runs", "steps each", "minutes", "memory"):
            shown.add_column(heading, justify="left" if heading == "recipe" else "right")
        for one in self.contestants:
            expected = self.expected[one.name]
            of_recipe = self.terms.runs * expected.seconds / 60
            minutes += of_recipe
            rates = ", ".join(f"{rate:g}" for rate in self._rates(one))
            held = expected.memory_bytes
            memory = "?" if held is None else f"{held / 2**20:,.0f} MiB"
            steps = str(expected.steps)
            row = (one.name, rates, str(self.terms.runs), steps, f"{of_recipe:.1f}", memory)
            shown.add_row(*row)
        shown.caption = (
            f"{runs} runs, about {minutes:.0f} minutes of training in all, loading and "
            f"scoring beside it"
        )
        return shown

    def _rates(self, one: Contestant) -> list[float]:
        alone = self.terms.sweep or self.terms.trials == 1
        return [one.learning_rate] if alone else one.rates(self.terms.trials)

    def save(self, folder: Path) -> None:
        """Write `plan.json`: what is done, and beside it what it is expected to take."""
        expected = {name: dataclasses.asdict(one) for name, one in self.expected.items()}
        plain = {"does": self.to_dict(), "expected": expected, "beside": dict(self.beside)}
        write_json_atomically(folder / FILE, plain)


def _examples_of_step(recipe: Recipe) -> int:
    return recipe.training.batch_size * recipe.training.accumulation


def recorded_expectations(folder: Path, plan: ComparisonPlan) -> dict[str, Expectation] | None:
    """Return what was expected when a comparison began; None where none has.

    A comparison that goes on keeps its steps, even where they came from timing.

    Args:
        folder: of the comparison.
        plan: what is asked now.

    Raises:
        InputError: the folder holds another comparison.
    """
    if not (folder / FILE).is_file():
        return None
    recorded = RunFolder(folder).read(folder / FILE)
    was, now = recorded["does"], plan.to_dict()
    # A field that an earlier version did not know has its default.
    read = {name: from_plain(one).to_plain() for name, one in was["recipes"].items()}
    was = {**was, "recipes": json.loads(json.dumps(read))}
    if now["data"] == str(folder / "data"):  # the folder's own, however the folder is called
        was = {**was, "data": now["data"]}
    has_begun = any((folder / name).is_dir() for name in ("runs", "forgetting"))
    if has_begun and "beside" in recorded:  # not in the oldest folders
        was, now = {**was, **recorded["beside"]}, {**now, **plan.beside}
    for key, value in json.loads(json.dumps(now)).items():
        if was.get(key) != value:
            raise InputError(
                f"output {str(folder)!r} holds another comparison: its {key} was "
                f"{_short(was.get(key))} and is {_short(value)} now; give another "
                f"folder, or call it with what it began with"
            )
    return {name: Expectation(**one) for name, one in recorded["expected"].items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."

"""Jobs of a comparison and what is left of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.comparison.comparison_plan import RATE
from deltatune.comparison.evaluation import lower_is_better
from deltatune.comparison.jobs import Job, Outcome
from deltatune.run_folder import RunFolder

__all__ = ["Ended", "chosen_rate", "ended"]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job and what is left of it.

    Args:
        job: the run.
        outcome: how it ended.
        folder: of the run.
    """

    job: Job
    outcome: Outcome
    folder: RunFolder

    @property
    def is_finished(self) -> bool:
        """Whether there is a score."""
        return self.outcome.status == "finished"

    @functools.cached_property  # score, columns and comparisons all ask for it
    def evaluation(self) -> dict[str, Any]:
        """The evaluation after training, of a finished run."""
        after: dict[str, Any] = self.folder.read(self.folder.evaluation)["after"]
        return after

    @property
    def score(self) -> float:
        """The headline of a finished run."""
        return float(self.evaluation["metrics"][self.evaluation["headline"]])

    @property
    def rate(self) -> float:
        """The learning rate of the job."""
        return float(self.job.settings[RATE])


def ended(runs: Path, jobs: Sequence[Job]) -> list[Ended]:
    """Read how jobs ended."""
    return [
        Ended(job=job, outcome=Outcome.of(runs, job), folder=RunFolder(runs / job.name))
        for job in jobs
    ]


def chosen_rate(trials: Sequence[Ended]) -> float | None:
    """Return the learning rate with the best validation score, of equal ones the lowest.

    None where no trial finished.
    """
    finished = sorted((one for one in trials if one.is_finished), key=lambda one: one.rate)
    if not finished:
        return None
    sign = -1.0 if lower_is_better(finished[0].evaluation["headline"]) else 1.0
    return max(finished, key=lambda one: sign * one.score).rate

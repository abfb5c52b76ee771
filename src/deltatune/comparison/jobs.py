"""One run of a comparison: what it is, where it lies, and how it ended."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltatune.files import write_json_atomically
from deltatune.run_folder import RunFolder

__all__ = ["ENDED", "Job", "Outcome", "file_name"]

# A job that ended so is not run again; one that failed or was killed is, when the comparison is
# called again, since the machine may have been the cause.
ENDED = ("finished", "diverged", "out of memory")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Args:
        recipe: name of the contestant.
        kind: `trial` of a learning rate, `final`, or `cell` of a sweep.
        settings: field -> value, on top of the contestant's recipe.
        seed: of data order, dropout and start values.
        scored_on: `validation` where something is chosen by the score, else `test`.
        number: of the trial or cell among those of its kind, from 0 up.
    """

    recipe: str
    kind: str
    settings: Mapping[str, Any]
    seed: int
    scored_on: str
    number: int = 0

    @property
    def name(self) -> str:
        """Tells it from all others of the comparison, as part of a file's name."""
        number = "" if self.kind == "final" else f"-{self.number}"
        return f"{file_name(self.recipe)}-{self.kind}{number}-seed-{self.seed}"

    def is_the_one_in(self, order: Path) -> bool:
        """Tell whether the order that lies under this job's name is of the same settings."""
        recorded = RunFolder(order.parent).read(order)["job"]
        return bool(recorded == json.loads(json.dumps(self.to_dict())))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {**dataclasses.asdict(self), "settings": dict(self.settings)}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Args:
        status: `waiting`, or one of `ENDED`, `failed`, `killed`.
        message: one line, empty if finished.
        measured: what the run folder does not hold: forgetting, energy.
    """

    status: str
    message: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether running it again would give the same."""
        return self.status in ENDED

    @classmethod
    def of(cls, runs: Path, job: Job) -> Outcome:
        """Read how a job ended; `waiting` where nothing is written, or of other settings."""
        path = runs / f"{job.name}.json"
        order = runs / f"{job.name}.order.json"
        if order.is_file() and not job.is_the_one_in(order):
            return cls(status="waiting")
        return cls(**RunFolder(runs).read(path)) if path.is_file() else cls(status="waiting")

    def save(self, runs: Path, job: Job) -> None:
        """Write it beside the run's folder."""
        write_json_atomically(runs / f"{job.name}.json", dataclasses.asdict(self))


def file_name(text: str) -> str:
    """Return a name as part of a path: letters, digits, dots and dashes stay.

    >>> file_name("efficientft:host=dora")
    'efficientft_host_dora'
    """
    return re.sub(r"[^\w.-]+", "_", text)

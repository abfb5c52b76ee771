"""What the base of a comparison scores: measured by the first run that needs it, for all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.comparison.jobs import Job
from deltatune.files import write_json_atomically
from deltatune.run_folder import RunFolder

__all__ = ["BaseScores"]


@dataclass(frozen=True)
class BaseScores:
    """A folder of scores of the untrained model.

    All runs of a comparison see the same base, and those of one seed the same untrained head. Two
    that begin at once both measure, and write the same.
    """

    folder: Path

    def before(self, job: Job) -> Mapping[str, Any] | None:
        """Return the untrained model's scores on the part that a job is scored on, if known."""
        path = self._before(job)
        if job.kind == "cell" or not path.is_file():
            return None
        found: Mapping[str, Any] = RunFolder(self.folder).read(path)
        return found

    def keep_before(self, job: Job, run: RunFolder) -> None:
        """Take them from a finished run.

        The runs of a sweep may differ in precision or length, so they give none.
        """
        if job.kind != "cell" and not self._before(job).is_file():
            self._write(self._before(job), run.read(run.evaluation)["before"])

    def held_out_loss(self) -> float | None:
        """Return the base's loss on the data that forgetting is measured on, if known."""
        path = self._held_out
        return RunFolder(self.folder).read(path)["loss"] if path.is_file() else None

    def keep_held_out_loss(self, loss: float | None) -> None:
        """Keep it for the others."""
        if loss is not None and not self._held_out.is_file():
            self._write(self._held_out, {"loss": loss})

    def _before(self, job: Job) -> Path:
        return self.folder / f"{job.scored_on}-seed-{job.seed}.json"

    @property
    def _held_out(self) -> Path:
        return self.folder / "held_out.json"

    def _write(self, path: Path, values: Mapping[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        write_json_atomically(path, values)

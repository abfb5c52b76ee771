"""One run of a comparison in a process of its own: `python -m deltatune.comparison.worker ORDER`.

A process of its own, because on a CPU memory is that of the process, and because what crashes or is
killed must not take the others with it.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from deltatune.comparison.base_scores import BaseScores
from deltatune.comparison.calibration_error import expected_calibration_error
from deltatune.comparison.energy import EnergyMeter
from deltatune.comparison.forgetting import forgetting
from deltatune.comparison.jobs import Job, Outcome
from deltatune.errors import DeltatuneError, Diverged, InputError, Interrupted, OutOfMemory
from deltatune.file_lock import held
from deltatune.files import write_json_atomically
from deltatune.recipe import from_plain
from deltatune.run import finetune
from deltatune.run_folder import RunFolder

__all__ = ["STOPPING_SECONDS", "Order", "worker_command"]

STOPPING_SECONDS = 120.0  # for a run to save the step at which it was stopped
# What it drew before it was stopped is not known, and the rest alone would look cheap.
NO_ENERGY = {
    "energy_kilowatt_hours": None,
    "carbon_kilograms": None,
    "energy_source": "not measured where a run was stopped and went on",
    "energy_measured": "",
}


@dataclass(frozen=True, kw_only=True)
class Order:
    """All that a process needs to know to do one run.

    Args:
        job: the run.
        recipe: in its plain form, the job's settings in it.
        runs: folder of all runs of the comparison.
        model: as for `finetune`.
        data: a name or path.
        columns: as for `finetune`.
        task: as for `finetune`.
        metric: as for `finetune`.
        allow_remote_code: as for `finetune`.
        forgetting_data: name or path of what the base could do; empty for the base's own.
        grid_intensity: kilograms of CO2e for a kilowatt-hour; None where nobody said.
    """

    job: Job
    recipe: Mapping[str, Any]
    runs: str
    model: str
    data: str
    columns: Mapping[str, str] | None
    task: str | None
    metric: str
    allow_remote_code: bool
    forgetting_data: str
    grid_intensity: float | None

    @property
    def folder(self) -> RunFolder:
        """The folder of the run itself."""
        return RunFolder(Path(self.runs) / self.job.name)

    @property
    def path(self) -> Path:
        """Where the order lies."""
        return Path(self.runs) / f"{self.job.name}.order.json"

    @property
    def log(self) -> Path:
        """Where the run's output goes."""
        return Path(self.runs) / f"{self.job.name}.log"

    @property
    def base_scores(self) -> BaseScores:
        """What the base scores, for all runs of the comparison."""
        return BaseScores(Path(self.runs).parent / "base")

    @property
    def lock(self) -> Path:
        """Held by the process that does the run."""
        return Path(self.runs) / f"{self.job.name}.lock"

    def save(self) -> None:
        """Write it for the process."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        write_json_atomically(self.path, {**plain, "job": self.job.to_dict()})

    @classmethod
    def load(cls, path: Path) -> Order:
        """Read what `save` wrote."""
        plain = RunFolder(path.parent).read(path)
        return cls(**{**plain, "job": Job(**plain["job"])})


def work(order: Order) -> Outcome:
    """Train, or take the finished run, and measure what its folder does not hold.

    Raises:
        Interrupted: the process was asked to stop; the run can go on.
    """
    went_on = order.folder.recipe.is_file()
    with EnergyMeter(grid_intensity=order.grid_intensity) as energy:
        try:
            if not order.folder.is_finished:
                _train(order)
        except Interrupted:
            raise
        except Diverged as error:
            return Outcome(status="diverged", message=str(error))
        except OutOfMemory as error:
            return Outcome(status="out of memory", message=str(error))
        except DeltatuneError as error:
            return Outcome(status="failed", message=str(error))
    result = order.folder.read(order.folder.evaluation)
    if result.get("collapse"):
        return Outcome(status="diverged", message=result["collapse"])
    measured = {
        **energy.to_dict(),
        **(NO_ENERGY if went_on else {}),
        "calibration_error": expected_calibration_error(result["after"]["items"]),
        **(_forgetting(order) if order.job.kind == "final" else {}),
    }
    return Outcome(status="finished", measured=measured)


def _train(order: Order) -> None:
    begun = order.folder.recipe.is_file()
    recipe = from_plain(order.recipe)
    if begun:  # engines may differ in this, and it changes no result
        every = order.folder.recorded_recipe().training.checkpoint_every
        recipe = recipe.with_fields({"training.checkpoint_every": every})
    finetune(
        order.model,
        order.data,
        recipe,
        output=order.folder.path,
        columns=order.columns,
        task=order.task,
        metric=order.metric,
        scored_on=order.job.scored_on,
        allow_remote_code=order.allow_remote_code,
        resume=begun,
        console=Console(stderr=True, width=120),
        before=order.base_scores.before(order.job),
    )
    order.base_scores.keep_before(order.job, order.folder)


def _forgetting(order: Order) -> dict[str, Any]:
    try:
        found = forgetting(
            order.folder.path,
            order.forgetting_data or None,
            base_loss=order.base_scores.held_out_loss(),
        )
    except InputError as error:  # data that this base cannot read: the run itself is done
        return {"forgetting": None, "forgetting_note": str(error)}
    order.base_scores.keep_held_out_loss(found.base_loss)
    return {
        "forgetting": found.rise,
        "forgetting_note": found.reason,
        "forgetting_data": found.data,
    }


def worker_command(order: Order) -> list[str]:
    """Return the command that does a run, as a child of this process."""
    module = "deltatune.comparison.worker"
    return [sys.executable, "-m", module, str(order.path), str(os.getpid())]


def main() -> None:
    """Do the run whose order is given, and write how it ended."""
    path, parent = sys.argv[1:]
    order = Order.load(Path(path))
    threading.Thread(target=_stop_when_alone, args=(int(parent),), daemon=True).start()
    try:
        # Of a comparison that was killed the run may still be saving its step.
        with held(order.lock, f"run {order.job.name!r}", wait_seconds=STOPPING_SECONDS):
            outcome = work(order)
            outcome.save(Path(order.runs), order.job)
    except (Interrupted, InputError) as error:
        raise SystemExit(str(error)) from None


def _stop_when_alone(parent: int) -> None:
    """Stop when the comparison is gone: called again, it would train in the same folder.

    The parent's number is given, not asked for: it may have ended while this process began.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()

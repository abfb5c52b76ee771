"""What a user asks a run to work on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.data import yardstick
from deltatune.data.loading import Examples
from deltatune.data.offline import known_tasks
from deltatune.data.yardstick import Yardstick
from deltatune.errors import unknown_name

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for, beside the recipe.

    Args:
        model: folder, Hugging Face name, `package:NAME` or `deltatune/NAME`.
        data: anything `deltatune.data.loading.load` takes.
        columns: column role -> column name; guessed where not given.
        task: of the data; guessed if not given.
        allow_remote_code: whether code that comes with the model may run.
        scored_on: the split that is scored before and after, `validation` to choose settings by
            without touching the test; empty for the test split where there is one.
        metric: `loss` or a name of `yardstick.METRICS`; empty for what the data's maker measures,
            and the loss where nobody says.
    """

    model: str | Path
    data: Any
    columns: Mapping[str, str] | None = None
    task: str | None = None
    allow_remote_code: bool = False
    scored_on: str = ""
    metric: str = ""

    def inputs(self, examples: Examples) -> dict[str, Any]:
        """Return what identifies the run beside its recipe; a resumed run must have the same."""
        return {
            "model": _from_anywhere(self.model),
            "data": _from_anywhere(examples.source),
            "data_fingerprint": examples.fingerprint,
            "task": examples.task,
            "columns": dict(examples.columns),
            "label_names": list(examples.label_names),
            "allow_remote_code": self.allow_remote_code,
            "scored_on": self.split_of(examples),
            **({"metric": self.metric} if self.metric else {}),
        }

    def yardstick(self, examples: Examples) -> Yardstick | None:
        """Return how answers are judged; None for the loss, or the metrics that labels have.

        Raises:
            InputError: a metric that is not known, or not for this data.
        """
        own = examples.yardstick
        if not self.metric or (own is not None and own.metric == self.metric):
            return own
        split = self.split_of(examples)
        return yardstick.by_metric(
            self.metric,
            {split: examples.splits[split]},
            task=examples.task,
            completion=examples.columns.get("completion", ""),
        )

    def split_of(self, examples: Examples) -> str:
        """Return the split that is scored.

        Raises:
            InputError: the data holds none of the name that was given.
        """
        held_out = [name for name in ("test", "validation") if name in examples.splits]
        if self.scored_on and self.scored_on not in held_out:
            raise unknown_name("in this data the held-out split", self.scored_on, held_out)
        return self.scored_on or held_out[0]


def _from_anywhere(name: str | Path) -> str:
    """Return a path so that it can be found from any folder, and any other name as it is."""
    if known_tasks.is_offline(name):
        return str(name)
    path = Path(name).expanduser()
    return str(path.resolve()) if os.path.exists(path) else str(name)

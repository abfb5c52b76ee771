"""What a user asks a run to work on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.data.loading import Examples

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for, beside the recipe.

    Args:
        model: folder, Hugging Face name, or `package:NAME`.
        data: anything `deltatune.data.loading.load` takes.
        columns: column role -> column name; guessed where not given.
        task: of the data; guessed if not given.
        allow_remote_code: whether code that comes with the model may run.
    """

    model: str | Path
    data: Any
    columns: Mapping[str, str] | None = None
    task: str | None = None
    allow_remote_code: bool = False

    def inputs(self, examples: Examples) -> dict[str, Any]:
        """Return what identifies the run beside its recipe; a resumed run must have the same."""
        return {
            "model": _from_anywhere(str(self.model)),
            "data": _from_anywhere(examples.source),
            "data_fingerprint": examples.fingerprint,
            "task": examples.task,
            "columns": dict(examples.columns),
            "label_names": list(examples.label_names),
            "allow_remote_code": self.allow_remote_code,
        }


def _from_anywhere(name: str) -> str:
    """Return a path so that it can be found from any folder, and any other name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if os.path.exists(path) else name

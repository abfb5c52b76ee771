"""Were the runs of a comparison made under the same conditions? It may go on days later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from deltatune.run_folder import RunFolder

__all__ = ["differing_conditions"]

# Of `environment()`; what the runs have in common lies in the plan.
CONDITIONS = ("deltatune", "python", "packages", "platform", "cpus", "threads", "device")


def differing_conditions(alike: Iterable[Sequence[RunFolder]]) -> list[str]:
    """Return a note where runs had other bases, versions or machines than others.

    A base may be changed, and packages be replaced, between two calls of one comparison.

    Args:
        alike: the finished runs of each recipe, or of each cell of a sweep. Recipes that load the
            base in different precisions see other numbers of it, so bases are compared within one.
    """
    groups = [
        [one.read(one.environment) for one in folders if one.environment.is_file()]
        for folders in alike
    ]
    notes = []
    bases = [{one["inputs"].get("model_fingerprint") for one in group} for group in groups]
    if any(len(of_group) > 1 for of_group in bases):
        notes.append(
            "the model was changed while the comparison ran: its runs began from different "
            "weights and cannot be compared; begin again in another folder"
        )
    recorded = [one for group in groups for one in group]
    differing = [name for name in CONDITIONS if len({_text(one, name) for one in recorded}) > 1]
    if differing:
        notes.append(
            f"not all runs had the same {', '.join(differing)}: their times and memory cannot be "
            f"compared, and scores may differ a little"
        )
    return notes


def _text(recorded: dict[str, Any], name: str) -> str:
    return json.dumps(recorded.get(name), sort_keys=True)

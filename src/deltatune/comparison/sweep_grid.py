"""The scores of a sweep as the grid that its picture shows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from deltatune.comparison.comparison_plan import ComparisonPlan
from deltatune.comparison.ended import Ended

__all__ = ["sweep_grid"]


def sweep_grid(plan: ComparisonPlan, everything: Sequence[Ended]) -> dict[str, Any] | None:
    """Return the grid of scores, means over the seeds, the second field downwards."""
    if not plan.terms.sweep:
        return None
    fields, values = list(plan.terms.sweep), [list(v) for v in plan.terms.sweep.values()]
    columns_, rows = values[0], values[1] if len(values) > 1 else [None]
    cells, messages = [], []
    for y in range(len(rows)):
        of_cells = [_cell(everything, x * len(rows) + y) for x in range(len(columns_))]
        cells.append([score for score, _ in of_cells])
        messages.append([message for _, message in of_cells])
    return {"fields": fields, "values": values, "cells": cells, "messages": messages}


def _cell(everything: Sequence[Ended], number: int) -> tuple[float | None, str]:
    own = [one for one in everything if one.job.number == number]
    lost = [one for one in own if not one.is_finished]
    if lost:
        return None, f"{lost[0].outcome.status}: {lost[0].outcome.message}"
    return statistics.mean(one.score for one in own), ""

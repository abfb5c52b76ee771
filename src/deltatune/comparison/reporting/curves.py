"""Loss curves of the final runs: the mean over seeds of each recipe, smoothed, and every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.comparison.reporting.contents import Comparison, Run

__all__ = ["Curve", "RecipeCurves", "loss_curves", "running_mean"]

SMOOTHED_SHARE = 0.08  # of the points of a curve, that one smoothed point is the mean of


@dataclass(frozen=True)
class Curve:
    """Losses over optimizer steps.

    Args:
        name: of the run, or of the recipe for a mean.
        steps: of the losses.
        losses: as many, all finite.
        stopped: what ended the run early; empty if it finished.
    """

    name: str
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    stopped: str = ""


@dataclass(frozen=True)
class RecipeCurves:
    """The curves of one recipe; `mean` is None where no final run finished.

    Args:
        place: of the recipe among all, best first: by it a recipe looks the same in every plot.
        recipe: its name.
        mean: over the seeds, smoothed.
        runs: every final run.
    """

    place: int
    recipe: str
    mean: Curve | None
    runs: tuple[Curve, ...]


def loss_curves(comparison: Comparison) -> list[RecipeCurves]:
    """Return the curves of the recipes whose final runs left any, best recipes first."""
    found = []
    for place, row in enumerate(comparison.best_first()):
        finals = [run for run in comparison.runs if run.recipe == row.name and run.kind == "final"]
        runs = tuple(curve for curve in map(_curve, finals) if curve.steps)
        if runs:
            whole = [curve for curve in runs if not curve.stopped]
            found.append(RecipeCurves(place, row.name, _mean(row.name, whole), runs))
    return found


def _curve(run: Run) -> Curve:
    points = [(step, loss) for step, loss in run.losses if loss is not None]
    stopped = "" if run.status == "finished" else f"{run.status}: {run.message}".strip(": ")
    return Curve(run.name, tuple(p[0] for p in points), tuple(p[1] for p in points), stopped)


def _mean(recipe: str, curves: Sequence[Curve]) -> Curve | None:
    """Return the smoothed mean at the steps that all curves have."""
    if not curves:
        return None
    by_step = [dict(zip(curve.steps, curve.losses, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(losses) for losses in by_step)))
    means = [sum(losses[step] for losses in by_step) / len(by_step) for step in steps]
    return Curve(recipe, tuple(steps), running_mean(means)) if steps else None


def running_mean(values: Sequence[float]) -> tuple[float, ...]:
    """Return each value's mean with its neighbours on both sides, fewer of them at the ends.

    As many on the left as on the right, so that a falling curve is not lifted at its end.

    >>> running_mean([3.0, 1.0, 2.0])
    (3.0, 1.0, 2.0)
    """
    half = round(SMOOTHED_SHARE * len(values) / 2)
    smoothed = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        part = values[i - reach : i + reach + 1]
        smoothed.append(sum(part) / len(part))
    return tuple(smoothed)

"""What was compared and what came out, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.comparison.reporting.contents import Budget, Comparison, RecipeRow, SweepGrid

__all__ = ["budget_in_words", "failure_message", "listed", "outcome", "what_was_compared"]

SHOWN_NAMES = 6


def listed(names: Sequence[str], limit: int = SHOWN_NAMES) -> str:
    """Return names as a sentence has them.

    >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b", "c"], limit=2)
    ('a', 'a, b and c', 'a, b and 1 more')
    """
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def budget_in_words(budget: Budget) -> str:
    """Return how much each recipe could spend, and what that includes."""
    if budget.amount is None:
        return f"no limit of {budget.kind} (per {budget.per})"
    kind = {"flops": "FLOPs"}.get(budget.kind, budget.kind)
    amount = f"{budget.amount:,.0f}" if budget.amount >= 100 else f"{budget.amount:g}"
    shown = f"{budget.amount:.3g}" if budget.amount >= 1e9 else amount
    return f"{shown} {kind} (per {budget.per})"


def what_was_compared(comparison: Comparison) -> str:
    """Return what was trained on what, by which measure, at which budget, with which seeds."""
    count = len(comparison.recipes)
    task = f" ({comparison.task})" if comparison.task else ""
    parts = [
        f"{count} recipe{'' if count == 1 else 's'} trained {comparison.model or 'a model'} "
        f"on {comparison.data or 'data'}{task}.",
        f"The score is {comparison.metric}, of which "
        f"{'more' if comparison.higher_is_better else 'less'} is better{_limits(comparison)}.",
        f"The budget was {budget_in_words(comparison.budget)}.",
    ]
    if comparison.trials:
        trials = "one learning rate" if comparison.trials == 1 else f"{comparison.trials} rates"
        parts.append(f"Each recipe tried {trials} on validation data.")
    if comparison.seeds:
        word = "seed" if len(comparison.seeds) == 1 else "seeds"
        parts.append(f"Final runs used {word} {listed([str(s) for s in comparison.seeds])}.")
    return " ".join(parts)


def _limits(comparison: Comparison) -> str:
    limits = [
        f"{value:g} {meaning}"
        for value, meaning in (
            (comparison.chance, "is what chance gives"),
            (comparison.ceiling, "the best that can be reached"),
        )
        if value is not None
    ]
    return f" ({' and '.join(limits)})" if limits else ""


def outcome(comparison: Comparison) -> str:
    """Return which recipes are best, or that they cannot be told apart."""
    rows = comparison.best_first()
    ranked = [row for row in rows if row.rank is not None]
    failed = [row.name for row in rows if row.status == "failed"]
    said = [_best(comparison, ranked) if ranked else "No recipe has a rank."]
    chance = [row.name for row in ranked if _is_at_chance(comparison, row)]
    if chance:
        said.append(f"Not above chance: {listed(chance)}.")
    if failed:
        said.append(f"No final run of {listed(failed)} finished.")
    if comparison.sweep is not None:
        said.append(_best_cell(comparison, comparison.sweep))
    return " ".join(said)


def _is_at_chance(comparison: Comparison, row: RecipeRow) -> bool:
    """Return whether chance lies in the interval of a recipe or beyond it, or beyond its mean."""
    found = row.statistics("score")
    end = found.low if comparison.higher_is_better else found.high
    worst = found.mean if end is None else end
    if comparison.chance is None or worst is None:
        return False
    sign = 1.0 if comparison.higher_is_better else -1.0
    return sign * worst <= sign * comparison.chance


def _best_cell(comparison: Comparison, sweep: SweepGrid) -> str:
    sign = 1.0 if comparison.higher_is_better else -1.0
    scores = [
        (sign * score, y, x)
        for y, line in enumerate(sweep.cells)
        for x, score in enumerate(line)
        if score is not None
    ]
    if not scores:
        return "No run of the sweep finished."
    best = max(score for score, _, _ in scores)
    places = [sweep.place(y, x) for score, y, x in scores if score == best]
    return f"The best of the sweep is {sign * best:.3f}, with {listed(places, 1)}."


def _best(comparison: Comparison, ranked: Sequence[RecipeRow]) -> str:
    first = [row.name for row in ranked if row.rank == 1]
    if len(ranked) == 1:
        return f"Only {first[0]} has a score: there is nothing to compare it with."
    tested = [pair for pair in comparison.differences if pair.adjusted_p_value is not None]
    if not tested:
        return (
            f"The highest place belongs to {ranked[0].name} by its score, but nothing says "
            f"whether that is chance: it takes two seeds at least to tell recipes apart."
        )
    if len(first) == len(ranked):
        return "No recipe is significantly better than any other: all of them tie."
    if len(first) > 1:
        return (
            f"Nothing is significantly better than {listed(first)}; "
            f"which of these is best, these runs cannot tell."
        )
    beaten = sum(first[0] in (pair.first, pair.second) and pair.is_significant for pair in tested)
    if beaten == len(ranked) - 1:
        return f"{first[0]} is best: significantly better than every other recipe."
    return (
        f"{first[0]} is the only recipe that none beats significantly, "
        f"but not each of the others is significantly worse than it."
    )


def failure_message(comparison: Comparison, row: RecipeRow) -> str:
    """Return why a recipe failed: what its first run that did not finish said."""
    for run in comparison.runs:
        if run.recipe == row.name and run.status not in ("finished", "waiting"):
            return f"{run.status}: {run.message}" if run.message else run.status
    return "no final run finished"

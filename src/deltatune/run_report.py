"""What a reader sees of a finished run: a short table at the end, and a page to keep."""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from deltatune.bridges.quantized import is_packed, shape_of_packed
from deltatune.plan import Plan
from deltatune.run_folder import RunFolder
from deltatune.updates import groups as grouping

__all__ = ["page", "summary"]

BLOCKS = "▁▂▃▄▅▆▇█"


def summary(
    plan: Plan, result: Mapping[str, Any], costs: Mapping[str, Any], folder: RunFolder
) -> Group:
    """Return the table that ends a run: before, after, parameters, time, place, what next."""
    headline = result["after"]["headline"]
    before, after = result["before"]["metrics"][headline], result["after"]["metrics"][headline]
    weights = list(plan.base.model.parameters())
    total = sum(math.prod(shape_of_packed(weight)) for weight in weights)
    trained = costs["trainable_parameters"]
    rows = Table(title=Text(f"{plan.recipe.name}: done"), show_header=False)
    rows.add_row(f"{headline} before", f"{before:.4f}  ({result['before']['split']})")
    scored = result["after"]["metrics"].get("scored_answers", result["after"]["examples"])
    rows.add_row(f"{headline} after", f"{after:.4f}  ({scored:.0f} examples)")
    if result["after"].get("chance") is not None:
        bounds = "chance {chance:.4g}, ceiling {ceiling:.4g}".format(**result["after"])
        rows.add_row(f"{headline} bounds", bounds)
    if "majority_accuracy" in result["after"]["metrics"]:
        rows.add_row("majority class", f"{result['after']['metrics']['majority_accuracy']:.4f}")
    rows.add_row("parameters trained", f"{trained:,} ({100 * trained / total:.2f} %)")
    rows.add_row("training time", f"{costs['wall_seconds']:.1f} s")
    rows.add_row("result", Text(str(folder.path), overflow="fold"))
    # On one line however long it is, so that it can be copied.
    form = plan.carrier.first_export
    if form and any(map(is_packed, weights)):
        form = "peft"
    command = f"try next: deltatune export {shlex.quote(str(folder.path))} --to {form}"
    if not form:
        command = f"try next, in Python: deltatune.load({str(folder.path)!r})"
    following = Text(command, no_wrap=True, overflow="ignore")
    return Group(rows, following)


def page(plan: Plan, result: Mapping[str, Any], costs: Mapping[str, Any], folder: RunFolder) -> str:
    """Return the run's page: self-contained HTML without scripts."""
    console = Console(record=True, width=110, file=io.StringIO())
    console.print(Text(f"deltatune run {folder.path.name}", style="bold"))
    given = (f"{name} {plan.inputs[name]}" for name in ("model", "data", "task"))
    console.print(", ".join(given), markup=False)
    console.print(summary(plan, result, costs, folder), crop=False)
    console.print(_scores(result))
    console.print(_losses(folder.read_metrics()))
    console.print(plan.covered.table())
    console.print(grouping.table(plan.groups))
    console.print(plan.encoded.supervision.table())
    console.print(_costs(costs))
    console.print(Text("recipe", style="bold"))
    # As it is: square brackets in a name would be taken for markup, and vanish.
    console.print(plan.recipe.to_yaml(), highlight=False, markup=False)
    return console.export_html(inline_styles=True)


def _scores(result: Mapping[str, Any]) -> Table:
    shown = Table(title="scores")
    for column in ("metric", "before", "after"):
        shown.add_column(column)
    for name, after in result["after"]["metrics"].items():
        shown.add_row(name, f"{result['before']['metrics'][name]:.4f}", f"{after:.4f}")
    return shown


def _losses(metrics: Sequence[Mapping[str, Any]]) -> Group:
    """Draw the loss as one line of blocks, one block per fortieth of the run, and its numbers."""
    stride = max(-(-len(metrics) // 40), 1)
    means = []
    for start in range(0, len(metrics), stride):
        part = [row["loss"] for row in metrics[start : start + stride]]
        means.append(sum(part) / len(part))
    if not means:
        return Group(Text("no training step was recorded"))
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    line = "".join(BLOCKS[round((mean - low) * scale)] for mean in means)
    text = f"training loss, means of {stride} steps: first {means[0]:.4f}, last {means[-1]:.4f}"
    return Group(Text(text), Text(line))


def _costs(costs: Mapping[str, Any]) -> Table:
    shown = Table(title="costs")
    for column in ("figure", "value"):
        shown.add_column(column)
    for name, value in costs.items():
        if isinstance(value, Mapping):
            for inner, number in value.items():
                shown.add_row(f"{name}.{inner}", _number(number))
        else:
            shown.add_row(name, _number(value))
    return shown


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

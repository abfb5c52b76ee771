"""From an update rule to optimizer groups, and the table that shows them before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from deltatune.errors import InputError
from deltatune.sites import Sites
from deltatune.updates.update import Factor, Group, TrainedParameter, Update

__all__ = ["plan_groups", "table"]


def plan_groups(
    parameters: Sequence[TrainedParameter],
    update: Update,
    sites: Sites,
    *,
    learning_rate: float,
    weight_decay: float,
) -> tuple[Group, ...]:
    """Sort trained parameters into optimizer groups, each parameter into exactly one.

    One role, label, rate, decay and set of clipping make a group; all keep the order of
    `parameters`.

    Args:
        parameters: all that may ever train.
        update: the rule for their rates.
        sites: of the base model.
        learning_rate: of a parameter whose factors are all 1, above 0.
        weight_decay: of such a parameter, from 0 up.

    Raises:
        InputError: nothing trains, or a rate or decay is out of its range.
    """
    _check(parameters, learning_rate, weight_decay)
    factors = update.factors(parameters, sites)
    members: dict[tuple[str, float, float, str], list[TrainedParameter]] = {}
    for parameter in parameters:
        factor = factors.get(parameter.name, Factor())
        label = f"{parameter.role} {factor.label}".strip()
        rate, decay = learning_rate * factor.learning_rate, weight_decay * factor.weight_decay
        members.setdefault((label, rate, decay, factor.clipped_with), []).append(parameter)
    return tuple(
        Group(
            label=label,
            names=tuple(parameter.name for parameter in found),
            number_of_parameters=sum(math.prod(parameter.shape) for parameter in found),
            learning_rate=rate,
            weight_decay=decay,
            clipped_with=clipped_with,
        )
        for (label, rate, decay, clipped_with), found in members.items()
    )


def _check(
    parameters: Sequence[TrainedParameter], learning_rate: float, weight_decay: float
) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate={learning_rate:g} is not allowed: give a number above 0")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"weight_decay={weight_decay:g} is not allowed: give a number from 0 up")
    if not parameters:
        raise InputError(
            "nothing trains: give a selection and a delta that leave something to train"
        )


def table(groups: Sequence[Group]) -> Table:
    """Return the groups as a table for the terminal."""
    shown = Table(title="optimizer groups")
    shown.add_column("group")
    for column in ("tensors", "parameters", "learning rate", "decay"):
        shown.add_column(column, justify="right")
    for group in groups:
        shown.add_row(
            group.label,
            f"{len(group.names):,}",
            f"{group.number_of_parameters:,}",
            f"{group.learning_rate:.3g}",
            f"{group.weight_decay:.3g}",
        )
    tensors = sum(len(group.names) for group in groups)
    parameters = sum(group.number_of_parameters for group in groups)
    shown.add_section()
    shown.add_row("all", f"{tensors:,}", f"{parameters:,}", "", "")
    return shown

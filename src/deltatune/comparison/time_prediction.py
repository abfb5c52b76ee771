"""How long a micro-batch takes here, timed before anything is trained."""

from __future__ import annotations

import statistics
import time

from deltatune.comparison.costs import synchronize
from deltatune.comparison.micro_batch import first_rows, tried
from deltatune.errors import InputError
from deltatune.plan import Plan

__all__ = ["measured_micro_batch_seconds"]


def measured_micro_batch_seconds(plan: Plan, repeats: int = 2) -> float:
    """Return the median wall time of forward and backward pass of the first training examples.

    One pass before the timed ones warms up caches. Steps of the optimizer, reading and collating
    are not in it. Weights, gradients, buffers, modes and random states stay as they were.

    Args:
        plan: of the run.
        repeats: timed passes, from 1.

    Returns:
        Seconds for one micro-batch.

    Raises:
        InputError: `repeats` is below 1.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats} is not allowed: give an integer from 1, such as 2")
    parameters = list(plan.model.parameters())
    device = parameters[0].device
    seconds = []
    with tried(plan, first_rows(plan)) as loss:
        for _ in range(1 + repeats):
            synchronize(device)
            began = time.perf_counter()
            loss().backward()
            synchronize(device)
            seconds.append(time.perf_counter() - began)
            for parameter in parameters:
                parameter.grad = None
    return statistics.median(seconds[1:])

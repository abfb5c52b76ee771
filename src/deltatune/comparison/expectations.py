"""What a recipe's runs will take, from one micro-batch of each: nothing is trained."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from deltatune import planning
from deltatune.comparison.budget import StepCosts
from deltatune.comparison.contestants import Contestant
from deltatune.comparison.memory_prediction import predicted_memory_bytes
from deltatune.comparison.terms import Terms
from deltatune.comparison.time_prediction import measured_micro_batch_seconds
from deltatune.errors import InputError
from deltatune.plan import Plan
from deltatune.request import Request

__all__ = ["Expectation", "expectations", "warnings_of"]

FEW_STEPS = 20  # of a run that has hardly begun
MANY_EPOCHS = 20


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What is known of a recipe's runs before the first.

    Args:
        steps: optimizer steps of each run.
        epochs: passes over the training part that they are.
        tokens: that each run trains on.
        flops: of each run, counted on its first micro-batch.
        seconds: of each run's training, from timing that micro-batch here.
        memory_bytes: at the peak, above the loaded base; None for an optimizer without a formula.
        trainable_parameters: of the recipe.
    """

    steps: int
    epochs: float
    tokens: float
    flops: float
    seconds: float
    memory_bytes: int | None
    trainable_parameters: int


def expectations(
    request: Request, contestants: Sequence[Contestant], terms: Terms, console: Console
) -> dict[str, Expectation]:
    """Check every recipe on the model and the data, and divide the budget; by name of contestant.

    Each recipe is put into the model once, so whatever would stop a run for bad input stops the
    comparison before its first. A micro-batch of each is timed and counted.

    Raises:
        InputError: a recipe that cannot run here, or a budget below one step of each run.
    """
    expected: dict[str, Expectation] = {}
    for one in contestants:
        with console.status(f"looking at {one.name}"):
            try:
                plan = planning.plan(request, one.recipe, Console(file=io.StringIO()))
            except InputError as error:
                raise type(error)(f"recipe {one.name!r}: {error}") from error
            if (
                not expected
            ):  # the first pays for what libraries load late, and would get fewer steps
                measured_micro_batch_seconds(plan)
            expected[one.name] = _expectation(plan, one, terms)
    return expected


def _expectation(plan: Plan, one: Contestant, terms: Terms) -> Expectation:
    training, train = one.recipe.training, plan.encoded.splits["train"]
    lengths = plan.collate.lengths(train)
    examples = min(training.batch_size * training.accumulation, len(lengths))
    tokens = examples * sum(lengths) / len(lengths)
    # The first micro-batch may hold longer or shorter examples than the mean one.
    scale = tokens / sum(lengths[: training.batch_size])
    seconds = measured_micro_batch_seconds(plan) * scale
    flops = plan.micro_batch_costs()[0] * scale
    costs = StepCosts(tokens=tokens, seconds=seconds, flops=flops)
    steps = terms.budget.steps(costs, runs=terms.runs, recipe=one.name)
    return Expectation(
        steps=steps,
        epochs=steps * examples / len(lengths),
        tokens=steps * tokens,
        flops=steps * flops,
        seconds=steps * seconds,
        memory_bytes=predicted_memory_bytes(plan),
        trainable_parameters=plan.trainable_parameters,
    )


def warnings_of(name: str, expected: Expectation) -> list[str]:
    """Return what is odd about a recipe's share of the budget."""
    found = []
    if expected.steps < FEW_STEPS:
        found.append(f"{name}: {expected.steps} steps a run are few: give a larger budget")
    if expected.epochs > MANY_EPOCHS:
        found.append(
            f"{name}: each run goes {expected.epochs:.0f} times through the training part: a "
            f"smaller budget may do"
        )
    return found

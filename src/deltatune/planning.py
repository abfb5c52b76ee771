"""Everything that happens before training: load, resolve, check, select, inject, group, show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn

from deltatune.base import Base, load_base, without_dropout
from deltatune.bridges import applying
from deltatune.bridges.names import trained_parameters
from deltatune.bridges.optimizer import check_optimizer
from deltatune.causality import check_causal
from deltatune.comparison import costs
from deltatune.comparison.answers import Questions, questions
from deltatune.coverage import Coverage
from deltatune.data.calibration_batches import CalibrationBatches
from deltatune.data.encoding import Encoded
from deltatune.data.loading import Examples, load
from deltatune.data.yardstick import Yardstick
from deltatune.errors import InputError
from deltatune.inputs import inputs_of
from deltatune.notes import tell
from deltatune.objectives.chosen import objective_for
from deltatune.optimizers import check_can_run
from deltatune.part import Selection
from deltatune.plan import Plan, fresh_head
from deltatune.recipe import Recipe
from deltatune.request import Request
from deltatune.sites import Sites
from deltatune.updates import groups as grouping
from deltatune.updates.update import Group

__all__ = ["device", "plan"]

TASK_TYPES: dict[str, str | None] = {
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "image_classification": None,  # peft's wrappers for its tasks hand on token ids
    "completion": "CAUSAL_LM",
    "chat": "CAUSAL_LM",
    "text": "CAUSAL_LM",
}


def device() -> torch.device:
    """Return the accelerator of this process, or the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def plan(request: Request, recipe: Recipe, console: Console) -> Plan:
    """Do all that comes before training, and refuse what would go wrong in it.

    Raises:
        InputError: the first thing that is wrong with model, data or recipe.
    """
    check_can_run(recipe.optimizer.name)
    examples = _examples(request, recipe)
    console.print(examples.table())
    yardstick = request.yardstick(examples)
    carrier = recipe.carrier()
    loaded = _loader(request, examples, recipe, trains_base=carrier.trains_base)
    base = _made_ready(loaded(device=device()), examples.task, recipe)
    meter = costs.CostMeter(device())
    encoded, collate = inputs_of(examples, base, recipe.training, console)
    asked = _questions(request, examples, yardstick, base, encoded, console)
    objective = objective_for(recipe.objective, examples.task)
    batches = CalibrationBatches(encoded.splits["train"], collate, recipe.training)
    sites, selection, covered, model = _injected(recipe, base, examples.task, batches, objective)
    made = Plan(
        recipe=recipe,
        base=base,
        carrier=carrier,
        encoded=encoded,
        sites=sites,
        selection=selection,
        covered=covered,
        model=model,
        objective=objective,
        collate=collate,
        groups=_groups(model, sites, recipe),
        inputs={**request.inputs(examples), "model_fingerprint": base.fingerprint},
        meter=meter,
        constant_loss=encoded.uniform_loss(),
        reload_base=lambda: loaded().model,
        yardstick=yardstick,
        questions=asked,
    )
    console.print(covered.table())
    console.print(grouping.table(made.groups))
    return made


def _examples(request: Request, recipe: Recipe) -> Examples:
    """Load the data, and refuse those of which nothing can be held back for the evaluation."""
    examples = load(
        request.data, columns=request.columns, task=request.task, seed=recipe.training.seed
    )
    if not {"test", "validation"} & set(examples.splits):
        rows = examples.splits["train"].num_rows
        raise InputError(
            f"the data has {rows} training rows and no others, too few to hold some back for the "
            f"evaluation: give more rows, or a validation or test part"
        )
    return examples


def _injected(
    recipe: Recipe, base: Base, task: str, batches: CalibrationBatches, objective: Any
) -> tuple[Sites, Selection, Coverage, nn.Module]:
    """Select where the delta lives, and put it into the base."""
    calibration = applying.calibration_on(recipe, batches, objective)
    sites, selection, covered = applying.select(recipe, base.model, calibration)
    model = applying.inject(
        recipe,
        base.model,
        sites,
        selection,
        trained_modules=fresh_head(sites, task),
        task_type=TASK_TYPES[task],
        calibration=calibration,
    )
    return sites, selection, covered, model


def _loader(
    request: Request, examples: Examples, recipe: Recipe, *, trains_base: bool
) -> Callable[..., Base]:
    """Return what loads the base, every time alike."""
    return functools.partial(
        load_base,
        request.model,
        task=examples.task,
        label_names=examples.label_names,
        precision="float32" if trains_base else recipe.training.precision,
        allow_remote_code=request.allow_remote_code,
        seed=recipe.training.seed,
    )


def _made_ready(base: Base, task: str, recipe: Recipe) -> Base:
    """Refuse a base that cannot do the task, and take its dropout out unless it is wanted."""
    if TASK_TYPES[task] == "CAUSAL_LM":
        check_causal(base.model, base.name)
    if not recipe.training.base_dropout:
        without_dropout(base.model)
    return base


def _questions(
    request: Request,
    examples: Examples,
    yardstick: Yardstick | None,
    base: Base,
    encoded: Encoded,
    console: Console,
) -> Questions | None:
    """Return what the model is asked before and after training, where answers are generated."""
    if yardstick is None or yardstick.score is None:
        return None
    asked = questions(
        examples,
        yardstick,
        base.model,
        base.tokenizer,
        split=request.split_of(examples),
        max_length=encoded.supervision.max_length,
    )
    tell(console, asked.notes)
    return asked


def _groups(model: nn.Module, sites: Sites, recipe: Recipe) -> tuple[Group, ...]:
    trained = trained_parameters(model, sites)
    check_optimizer(recipe.optimizer, trained)
    return grouping.plan_groups(
        trained,
        recipe.update,
        sites,
        learning_rate=recipe.optimizer.learning_rate,
        weight_decay=recipe.optimizer.weight_decay,
    )

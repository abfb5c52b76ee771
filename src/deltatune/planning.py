"""Everything that happens before training: load, resolve, check, select, inject, group, show."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import nn

from deltatune.base import Base, load_base, without_dropout
from deltatune.base_record import BaseRecord
from deltatune.bridges import applying
from deltatune.bridges.carriers import Carrier, carrier_of
from deltatune.bridges.names import trained_parameters
from deltatune.bridges.optimizer import check_optimizer
from deltatune.causality import check_causal
from deltatune.comparison import costs
from deltatune.comparison.answers import Questions, questions
from deltatune.coverage import Coverage
from deltatune.data.calibration_batches import CalibrationBatches
from deltatune.data.encoding import Encoded
from deltatune.data.loading import Examples, load
from deltatune.data.tasks import TASKS
from deltatune.data.yardstick import Yardstick
from deltatune.errors import InputError
from deltatune.inputs import Collate, inputs_of
from deltatune.objectives.chosen import objective_for
from deltatune.optimizers import check_can_run
from deltatune.part import Selection
from deltatune.recipe import Recipe
from deltatune.request import Request
from deltatune.sites import Sites
from deltatune.updates import groups as grouping
from deltatune.updates.update import Group

__all__ = ["Plan", "device", "plan"]

TASK_TYPES: dict[str, str | None] = {
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "image_classification": None,  # peft's wrappers for its tasks hand on token ids
    "completion": "CAUSAL_LM",
    "chat": "CAUSAL_LM",
    "text": "CAUSAL_LM",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that has been checked and only needs to be trained.

    Args:
        recipe: the recipe.
        base: what was loaded; its model object is the one inside `model`.
        carrier: put the delta in, and can take it out.
        encoded: token ids or images of every split.
        sites: of the base.
        selection: where the delta lives.
        covered: what the selection matched.
        model: the model to train.
        objective: the loss.
        collate: rows -> batch.
        groups: of the optimizer.
        inputs: what identifies the run beside its recipe.
        meter: of costs, from the loaded base on.
        constant_loss: loss of the uniform predictor, ln C; None where there is none.
        reload_base: loads the untouched base again.
        yardstick: how answers are judged; None for the metrics that every task has.
        questions: that are asked before and after; None where no answer is generated.
    """

    recipe: Recipe
    base: Base
    carrier: Carrier
    encoded: Encoded
    sites: Sites
    selection: Selection
    covered: Coverage
    model: nn.Module
    objective: Any
    collate: Collate
    groups: tuple[Group, ...]
    inputs: Mapping[str, Any]
    meter: costs.CostMeter
    constant_loss: float | None
    reload_base: Callable[[], nn.Module]
    yardstick: Yardstick | None
    questions: Questions | None

    @property
    def trains_base(self) -> bool:
        """Whether base weights move."""
        return self.carrier.trains_base

    @property
    def base_record(self) -> BaseRecord:
        """What the delta needs its base to be: all that it does not hold whole itself."""
        whole = () if self.trains_base else _fresh_head(self.sites, self.encoded.task)
        return self.base.record.leaving_out(whole)

    @property
    def keeps_all_logits(self) -> bool:
        """Whether a forward pass gives logits of every token: `(batch, seq, vocab)` is large."""
        return not TASKS[self.encoded.task].has_fresh_head

    @property
    def evaluated_split(self) -> str:
        """The split that is scored before and after."""
        return str(self.inputs["scored_on"])

    def costs(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return what the meter does not know: parameters, states, FLOPs and their prediction."""
        counted, predicted = self._micro_batch_costs()
        return {
            "trainable_parameters": self.trainable_parameters,
            "trainable_parameters_ever": self.trainable_parameters,
            "optimizer_bytes": costs.optimizer_bytes(optimizer),
            "micro_batch_flops": counted,
            "predicted": predicted,
            "micro_batch_flops_predicted_to_counted_ratio": predicted["micro_batch_flops"]
            / counted,
        }

    def _micro_batch_costs(self) -> tuple[int, dict[str, Any]]:
        """Count the FLOPs of the first micro-batch of the training examples, and predict them."""
        train = self.encoded.splits["train"]
        rows = [train[i] for i in range(min(self.recipe.training.batch_size, len(train)))]
        on = next(self.model.parameters()).device
        batch = {key: value.to(on) for key, value in self.collate(rows).items()}
        inputs = {key: value for key, value in batch.items() if key != "labels"}

        def loss(model: nn.Module, given: Mapping[str, Any]) -> torch.Tensor:
            total: torch.Tensor = self.objective.total(model(**given), batch)
            return total

        _, positions = self.collate.tokens_in(batch)
        predicted = costs.predicted_costs(
            self.model,
            self.sites,
            sequences=len(rows),
            sequence_length=positions // len(rows),
            optimizer=self.recipe.optimizer.name,
            options=self.recipe.optimizer.options,
        )
        return costs.count_flops(self.model, inputs, loss), predicted

    @property
    def trainable_parameters(self) -> int:
        """Scalars that train."""
        return sum(group.number_of_parameters for group in self.groups)


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
    examples = load(
        request.data, columns=request.columns, task=request.task, seed=recipe.training.seed
    )
    _check_held_out(examples)
    yardstick = request.yardstick(examples)
    console.print(examples.table())
    carrier = carrier_of(recipe.delta)
    loaded = _loader(request, examples, recipe, trains_base=carrier.trains_base)
    base = loaded(device=device())
    if TASK_TYPES[examples.task] == "CAUSAL_LM":
        check_causal(base.model, base.name)
    if not recipe.training.base_dropout:
        without_dropout(base.model)
    meter = costs.CostMeter(device())
    encoded, collate = inputs_of(examples, base, recipe.training, console)
    asked = _questions(request, examples, yardstick, base, encoded, console)
    objective = objective_for(recipe.objective, examples.task)
    calibration = applying.calibration_on(
        recipe, CalibrationBatches(encoded.splits["train"], collate, recipe.training), objective
    )
    sites, selection, covered = applying.select(recipe, base.model, calibration)
    model = applying.inject(
        recipe,
        base.model,
        sites,
        selection,
        trained_modules=_fresh_head(sites, examples.task),
        task_type=TASK_TYPES[examples.task],
        calibration=calibration,
    )
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


def _check_held_out(examples: Examples) -> None:
    """Refuse data of which nothing can be held back: a run is scored on what it has not seen."""
    if not {"test", "validation"} & set(examples.splits):
        rows = examples.splits["train"].num_rows
        raise InputError(
            f"the data has {rows} training rows and no others, too few to hold some back for the "
            f"evaluation: give more rows, or a validation or test part"
        )


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
    for note in asked.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
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


def _fresh_head(sites: Sites, task: str) -> tuple[str, ...]:
    """Return the top modules of the head, which has to train for a task of its own."""
    if not TASKS[task].has_fresh_head:
        return ()
    return tuple(dict.fromkeys(site.module.split(".")[0] for site in sites.with_roles("head")))

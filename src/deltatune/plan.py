"""A run that has been checked and only needs to be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deltatune.base import Base
from deltatune.base_record import BaseRecord
from deltatune.blocks.block import reading
from deltatune.bridges.carriers import Carrier
from deltatune.bridges.names import trained_parameters
from deltatune.comparison import costs
from deltatune.comparison.answers import Questions
from deltatune.coverage import Coverage
from deltatune.data.encoding import Encoded
from deltatune.data.tasks import TASKS
from deltatune.data.yardstick import Yardstick
from deltatune.inputs import Collate
from deltatune.part import Selection
from deltatune.recipe import Recipe
from deltatune.sites import Sites
from deltatune.updates.update import Group

__all__ = ["Plan", "fresh_head"]


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
        whole = () if self.trains_base else fresh_head(self.sites, self.encoded.task)
        return self.base.record.leaving_out(whole)

    @property
    def keeps_all_logits(self) -> bool:
        """Whether a forward pass gives logits of every token: `(batch, seq, vocab)` is large."""
        return not TASKS[self.encoded.task].has_fresh_head

    @property
    def evaluated_split(self) -> str:
        """The split that is scored before and after."""
        return str(self.inputs["scored_on"])

    def costs(self, optimizer: torch.optim.Optimizer, *, steps: int) -> dict[str, Any]:
        """Return what the meter does not know: parameters, states, FLOPs and their prediction.

        Args:
            optimizer: after training.
            steps: of the run.
        """
        counted, predicted = self.micro_batch_costs()
        return {
            "trainable_parameters": self._trainable_at_the_end(steps),
            "trainable_parameters_ever": self.trainable_parameters,
            "optimizer_bytes": costs.optimizer_bytes(optimizer),
            "micro_batch_flops": counted,
            "predicted": predicted,
            "micro_batch_flops_predicted_to_counted_ratio": predicted["micro_batch_flops"]
            / counted,
        }

    def micro_batch_costs(self) -> tuple[int, dict[str, Any]]:
        """Count the FLOPs of the first micro-batch of the training examples, and predict them."""
        train = self.encoded.splits["train"]
        rows = [train[i] for i in range(min(self.recipe.training.batch_size, len(train)))]
        on = next(self.model.parameters()).device
        batch = {key: value.to(on) for key, value in self.collate(rows).items()}
        inputs = {key: value for key, value in batch.items() if key != "labels"}

        def loss(model: nn.Module, given: Mapping[str, Any]) -> torch.Tensor:
            with reading(self.model, batch):
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

    def _trainable_at_the_end(self, steps: int) -> int:
        parameters = trained_parameters(self.model, self.sites)
        live = self.recipe.update.live(max(0, steps - 1), parameters, steps=steps)
        return sum(math.prod(one.shape) for one in parameters if live is None or one.name in live)

    @property
    def trainable_parameters(self) -> int:
        """Scalars that ever train."""
        return sum(group.number_of_parameters for group in self.groups)


def fresh_head(sites: Sites, task: str) -> tuple[str, ...]:
    """Return the top modules of the head, which has to train for a task of its own."""
    if not TASKS[task].has_fresh_head:
        return ()
    return tuple(dict.fromkeys(site.module.split(".")[0] for site in sites.with_roles("head")))

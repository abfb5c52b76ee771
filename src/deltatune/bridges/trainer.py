"""Our losses in anybody's Trainer: exact over accumulation and processes, with one denominator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from deltatune.bridges import clipping
from deltatune.bridges.interruption import Interruption
from deltatune.bridges.packing import Packing
from deltatune.bridges.supervised_head import SupervisedHead
from deltatune.bridges.turns import Turns
from deltatune.errors import InputError, NotComposable
from deltatune.objectives.objective import Objective

__all__ = ["AuxiliaryTerm", "ObjectiveTrainer", "StepLosses", "with_objective"]

AuxiliaryTerm = Callable[[nn.Module], Tensor]
SomeTrainer = TypeVar("SomeTrainer", bound=Trainer)


class StepLosses(NamedTuple):
    """Losses of one optimizer step.

    Attributes:
        whole: what is minimised.
        without_auxiliary: that of the task alone.
    """

    whole: float
    without_auxiliary: float


def with_objective(trainer_class: type[SomeTrainer]) -> type[SomeTrainer]:
    """Return a subclass of any Trainer class that takes an objective.

    Works for transformers' `Trainer` and for trl's trainers, whose own loss stays when no
    objective is given. The subclass takes two further arguments, see `ObjectiveTrainer`.
    """
    return type(f"Objective{trainer_class.__name__}", (ObjectiveTrainer, trainer_class), {})


class ObjectiveTrainer(Trainer):
    """A mixin for Trainer classes: `class Mine(ObjectiveTrainer, SFTTrainer)`.

    With an objective, the loss of an optimizer step is `sum of totals / sum of counts` over all of
    its micro-batches and all processes; its gradient does not depend on how the batch is split.

    Args:
        args: as for the Trainer class.
        objective: the loss; None keeps the Trainer's own.
        auxiliary: terms that are added once per optimizer step, each from model to `()`.
        kwargs: as for the Trainer class.

    Attributes:
        apart: makes the block in which the Trainer's own loss is computed, so that the model does
            not add to it what `auxiliary` adds.
        while_reading: makes the block in which a batch goes through the model.
        supervised_head: the way to the loss in training; None takes it from the whole logits.
        packing: how flattened batches reach the model; None where all batches are padded.
        turns: who trains when; all train again after the run, also after one that failed.
    """

    objective: Objective | None
    auxiliary: tuple[AuxiliaryTerm, ...]
    apart: Callable[[], AbstractContextManager[Any]]
    while_reading: Callable[[Mapping[str, Any]], AbstractContextManager[Any]]
    interruption: Interruption | None = None
    supervised_head: SupervisedHead | None = None
    packing: Packing | None = None
    turns: Turns | None = None

    def __init__(
        self,
        *args: Any,
        objective: Objective | None = None,
        auxiliary: Sequence[AuxiliaryTerm] = (),
        **kwargs: Any,
    ) -> None:
        """Build the trainer."""
        self.objective = objective
        self.auxiliary = tuple(auxiliary)
        self.apart = contextlib.nullcontext
        self.while_reading = lambda batch: contextlib.nullcontext()
        # Of each micro-batch: its part of the step's loss, and of that without auxiliary terms.
        self._parts_of_step: list[Tensor] = []
        self._evaluated: tuple[float, int] = (0.0, 0)
        super().__init__(*args, **kwargs)
        if objective is not None:
            self._own_the_denominator()

    def _own_the_denominator(self) -> None:
        """Keep Trainer from dividing by the accumulation steps, in every supported version.

        From transformers 5.19 it asks the first; before, it does not divide when the second is true
        and a count of items was given, which `get_batch_samples` always does.
        """
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            raise NotComposable(
                "an objective and context or sequence parallelism cannot act together, since the "
                "objective needs whole sequences: train with data parallelism or FSDP"
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer class does, and obey signals if a callback asked for it."""
        with self.interruption or contextlib.nullcontext():
            try:
                return super().train(*args, **kwargs)
            finally:
                if self.turns is not None:
                    self.turns.end(self._live_model())

    def _live_model(self) -> nn.Module:
        live: Any = self  # transformers' annotations know more kinds than there are
        model: nn.Module = live.model
        return model

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip each set of gradients by itself where the optimizer's groups name several.

        Raises:
            NotComposable: tensor parallelism, under which no set has one norm.
        """
        optimizer = cast("torch.optim.Optimizer", self.optimizer)
        if not clipping.has_sets(optimizer):
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if self._has_mixed_mesh_grads(model):
            raise NotComposable(
                "clipping some gradients apart and tensor parallelism cannot act together: train "
                "with data parallelism or FSDP2"
            )
        self.accelerator.unscale_gradients()
        sets = clipping.sets_of(self._live_model(), optimizer)
        return clipping.clip(sets.values(), self.args.max_grad_norm)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Collect the micro-batches of one optimizer step and count their supervised terms."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._parts_of_step = []
        if self.objective is not None and batches:
            count = self._count(self.objective, batches, device)
        return batches, count

    def _count(
        self, objective: Objective, batches: Sequence[Mapping[str, Any]], device: torch.device
    ) -> Tensor:
        """Return the number of terms over the step's micro-batches and all processes, `()`."""
        for batch in batches:
            _check_labels(batch)
        own = torch.stack([objective.count(batch).to(device) for batch in batches]).sum()
        if self.args.world_size <= 1:
            return own
        # Ranks of one tensor-parallel group see the same batch.
        everywhere: Tensor = self.accelerator.gather(own.reshape(1)).sum()
        return everywhere // self.get_tp_size()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of one micro-batch, scaled so that the step's micro-batches add up."""
        loss: Any
        outputs: Any = None
        if self.objective is None:
            with self.apart(), self.while_reading(inputs):
                loss = super().compute_loss(
                    model,
                    inputs,
                    return_outputs=return_outputs,
                    num_items_in_batch=num_items_in_batch,
                )
            if return_outputs:
                loss, outputs = loss
        else:
            with self.while_reading(inputs):
                loss, outputs = self._objective_loss(
                    self.objective, model, inputs, num_items_in_batch
                )
        if model.training:
            loss = self._with_auxiliary(model, loss, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _objective_loss(
        self, objective: Objective, model: nn.Module, inputs: Mapping[str, Any], count: Any
    ) -> tuple[Tensor, Any]:
        _check_labels(inputs)
        given = {key: value for key, value in inputs.items() if key != "labels"}
        if self.packing is not None:
            given = self.packing.arguments(given)
        progress = min(self.state.global_step / max(self.state.max_steps, 1), 1.0)
        if model.training and self.supervised_head is not None:
            rows: Any = objective  # one that reads rows, or there would be no such head
            total = self.supervised_head.total(model, given, inputs, rows, progress=progress)
            return self._share(total, count), None
        outputs = model(**given)
        total = objective.total(outputs, inputs, progress=progress)
        if not model.training:
            return self._evaluated_loss(total, objective.count(inputs)), outputs
        return self._share(total, count), outputs

    def _share(self, total: Tensor, count: Any) -> Tensor:
        # DDP and FSDP average the gradients over the processes; the sum is wanted.
        processes = self.accelerator.num_processes // self.get_tp_size()
        share: Tensor = total * processes / torch.as_tensor(count).clamp(min=1)
        return share

    def _evaluated_loss(self, total: Tensor, count: Tensor) -> Tensor:
        """Return the mean of one evaluated batch and remember its sum for the exact mean of all."""
        self._evaluated = (
            self._evaluated[0] + float(total.detach()),
            self._evaluated[1] + int(count),
        )
        return total / count.clamp(min=1)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and report the loss as the sum over all batches divided by their count.

        Trainer reports the mean of the batches' means, which weighs a supervised token by the
        length of its batch. In several processes that is what stays, because batches that Trainer
        repeats to fill the last round cannot be told apart here.
        """
        self._evaluated = (0.0, 0)
        output = super().evaluation_loop(*args, **kwargs)
        total, count = self._evaluated
        prefix = kwargs.get("metric_key_prefix", "eval")
        if count and self.args.world_size <= 1 and output.metrics is not None:
            output.metrics[f"{prefix}_loss"] = total / count
        return output

    def _with_auxiliary(self, model: nn.Module, loss: Tensor, count: Any) -> Tensor:
        """Add the auxiliary terms, and note this micro-batch's part of the step's loss.

        A term belongs to the step, not to a micro-batch. Where Trainer divides the sum by the
        number of micro-batches it is added whole to each, else its share is.
        """
        micro_batches = self.current_gradient_accumulation_steps
        is_divided_later = not self._is_scaled(count)
        share = 1 if is_divided_later else micro_batches
        alone = loss.detach().float().mean()
        for term in self.auxiliary:
            loss = loss + term(model) / share
        parts = torch.stack([loss.detach().float().mean(), alone])
        self._parts_of_step.append(parts / micro_batches if is_divided_later else parts)
        return loss

    def _is_scaled(self, count: Any) -> bool:
        """Tell whether Trainer takes the loss as scaled for accumulation, by its own rule."""
        stated = getattr(self, "loss_is_scaled_for_ga", None)
        if stated is not None and hasattr(Trainer, "loss_is_scaled_for_ga"):
            return bool(stated)
        accepts = self.model_accepts_loss_kwargs and count is not None
        return bool(accepts or self.compute_loss_func is not None)

    def step_losses(self) -> StepLosses:
        """Return the losses of the optimizer step so far, the means over all processes."""
        if not self._parts_of_step:
            return StepLosses(0.0, 0.0)
        losses = torch.stack(self._parts_of_step).sum(dim=0)
        if self.args.world_size > 1:
            losses = self.accelerator.reduce(losses, reduction="mean")
        return StepLosses(*losses.tolist())


def _check_labels(batch: Any) -> None:
    if not isinstance(batch, Mapping) or "labels" not in batch:
        found = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise InputError(
            f"the batch has no 'labels', which an objective needs (it has {found}): "
            f"give examples with labels, or keep the trainer's own loss with objective=None"
        )

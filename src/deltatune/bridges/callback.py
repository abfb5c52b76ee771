"""What must happen between the steps of any Trainer: who trains, and when to stop."""

from __future__ import annotations

import math
import statistics
import weakref
from collections import deque
from collections.abc import Collection
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import Trainer, TrainerCallback

from deltatune.bridges.clipping import total_norm
from deltatune.bridges.interruption import Interruption
from deltatune.bridges.movement import Movement
from deltatune.bridges.names import trained_parameters
from deltatune.bridges.trainer import ObjectiveTrainer
from deltatune.bridges.turns import Turns
from deltatune.errors import Diverged, InputError, Interrupted, NotComposable
from deltatune.sites import Sites
from deltatune.updates.update import Update

__all__ = ["DeltaCallback"]

WINDOW = 20  # losses whose mean is compared with a constant prediction
ERRORS = 2  # standard errors of that mean that it must lie above
# A warm-up may begin at a rate of 0, and the down factor of a low-rank change moves only after the
# up factor has; every other tensor moves sooner.
STEPS_TO_MOVE = 4


class DeltaCallback(TrainerCallback):
    """Switches who trains, stops a diverged run, obeys signals, checks that the right weights move.

    Args:
        trainer: made by `with_objective`, before `train()`; add the callback to it.
        update: says who is live in each step.
        sites: of the base model.
        constant_loss: loss of the constant predictor, ln C for C classes, with which the loss
            without its auxiliary terms is compared; None without one.
        margin: how far above it, as a fraction, the mean of the last losses counts as diverged,
            less two standard errors of it: batches are noisy, and a run that has only not learnt
            yet stands right at it.
        warmup_steps: steps of this run before the comparison starts.
        check_movement_after: steps after which every trained tensor must have moved, or at the end
            of a shorter run; where who trains changes, only at the end, of those that had turns.
            Frozen tensors are compared then and at the end, bit by bit. 0 for neither; nor where
            tensors are sharded.
        may_rest: names of trained parameters that may stay where they started.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        update: Update,
        sites: Sites,
        constant_loss: float | None = None,
        margin: float = 0.02,
        warmup_steps: int = 60,
        check_movement_after: int = 10,
        may_rest: Collection[str] = (),
    ) -> None:
        """Bind the callback to its trainer.

        Raises:
            InputError: the trainer's class was not made by `with_objective`.
        """
        if not isinstance(trainer, ObjectiveTrainer):
            raise InputError(
                f"{type(trainer).__name__} does not tell its step losses: make the trainer's class "
                f"with deltatune.bridges.trainer.with_objective"
            )
        # The trainer owns its callbacks. A plain reference back would close a circle around the
        # model, which then outlives its run by as long as Python's collector lets it.
        self.trainer: ObjectiveTrainer = weakref.proxy(trainer)
        self.update = update
        self.sites = sites
        self.constant_loss = constant_loss
        self.margin = margin
        self.warmup_steps = warmup_steps
        self.check_movement_after = check_movement_after
        self.may_rest = frozenset(may_rest)
        self.interruption = trainer.interruption = Interruption()
        self.turns = trainer.turns = Turns(update)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._steps = 0
        self._is_stopping = False
        self._movement: Movement | None = None
        self._awaits_movement = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note who trains, by name, and what their tensors are."""
        model = self._model()
        self._check_can_switch()
        self.turns.begin(trained_parameters(model, self.sites))
        self._losses.clear()
        self._steps, self._is_stopping = 0, False
        self._movement = Movement(model, self.may_rest) if self._can_check_movement() else None
        self._awaits_movement = not self.update.changes_who_trains

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let those train who are live in this step; before the forward pass, not after."""
        self.turns.take(self._model(), state.global_step, state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop before a step that would spoil the weights.

        Raises:
            Diverged: the loss is not finite, or has stayed above a constant prediction's.
        """
        losses = self.trainer.step_losses()
        step = state.global_step + 1
        if not math.isfinite(losses.whole):
            raise Diverged(f"the loss of step {step} is {losses.whole}: {self._advice()}")
        self._check_gradient(step)
        self._losses.append(losses.without_auxiliary)
        self._steps += 1
        self._check_above_constant(step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check movement in time, and stop with a checkpoint when a signal came."""
        if self._awaits_movement and self._steps >= self.check_movement_after:
            self._check_movement()
        self._is_stopping = self._is_asked_to_stop()
        if self._is_stopping:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check movement, and say when the run was interrupted.

        Raises:
            WorkError: something moved that is frozen, or did not move that trains.
            Interrupted: a signal came; the checkpoint is written.
        """
        self._awaits_movement = self._awaits_movement and self._steps >= STEPS_TO_MOVE
        self._check_movement()
        if self.update.changes_who_trains and self._movement is not None:
            self._movement.check_trained(self._model(), self.turns.had_turns(STEPS_TO_MOVE))
        if self._is_stopping:
            received = self.interruption.received
            raise Interrupted(
                f"stopped by {received.name if received else 'another process'} after step "
                f"{state.global_step} of {state.max_steps}; the checkpoint is saved: go on with "
                f"--resume"
            )

    def _check_gradient(self, step: int) -> None:
        # A loss can be finite where its gradient is not; the step would spoil every weight. Under a
        # scaler (float16) such steps are usual, and skipped by it.
        if getattr(self.trainer.accelerator, "scaler", None) is not None:
            return
        norm = float(total_norm(self._model()))
        if not math.isfinite(norm):
            raise Diverged(f"the gradient of step {step} has the norm {norm}: {self._advice()}")

    def _model(self) -> torch.nn.Module:
        live: Any = self.trainer
        model: torch.nn.Module = live.model
        return model

    def _can_check_movement(self) -> bool:
        """Tell whether movement is to be checked: not where no process holds whole tensors."""
        is_sharded = self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled
        return bool(self.check_movement_after) and not is_sharded

    def _check_movement(self) -> None:
        if self._movement is not None:
            self._movement.check_frozen(self._model())
            if self._awaits_movement:
                self._movement.check_trained(self._model())
        self._awaits_movement = False

    def _check_can_switch(self) -> None:
        """Refuse changing sets where the wrapper around the model would not follow.

        DDP that does not search for unused parameters waits for gradients that never come, or lets
        the ranks drift apart silently; FSDP1 and DeepSpeed lay tensors together in flat ones.
        """
        if not self.update.changes_who_trains:
            return
        what = f"the update {type(self.update).__name__} changes who trains"
        wrapped = getattr(self.trainer, "model_wrapped", None)
        if not getattr(wrapped, "find_unused_parameters", True):
            raise NotComposable(
                f"{what}, and DDP is told not to look for unused parameters: set "
                f"ddp_find_unused_parameters=True"
            )
        if self.trainer.is_deepspeed_enabled or isinstance(wrapped, FullyShardedDataParallel):
            raise NotComposable(
                f"{what}, which DeepSpeed and FSDP1 cannot follow: train with DDP or FSDP2"
            )

    def _check_above_constant(self, step: int) -> None:
        constant = self.constant_loss
        if constant is None or len(self._losses) < WINDOW or self._steps <= self.warmup_steps:
            return
        mean = statistics.fmean(self._losses)
        # Of few examples a step losses scatter, and chance must not stop a run in hundreds of them.
        error = statistics.stdev(self._losses) / math.sqrt(WINDOW)
        if mean - ERRORS * error > constant * (1 + self.margin):
            raise Diverged(
                f"the mean of the last {WINDOW} losses is {mean:.4f} at step {step}, above the "
                f"{constant:.4f} of a constant prediction: {self._advice()}"
            )

    def _advice(self) -> str:
        groups = getattr(self.trainer.optimizer, "param_groups", ())
        rates = [(group.get("initial_lr", group["lr"]), group.get("label", "")) for group in groups]
        if not rates:
            return "lower the learning rate"
        rate, label = max(rates)
        return (
            f"lower the value learning rate or the ratio (the fastest group, {label or 'all'}, has "
            f"{rate:.3g}), for example by half, or clip gradients harder"
        )

    def _is_asked_to_stop(self) -> bool:
        """Tell whether any process got a signal: all must stop after the same step."""
        asked = self.interruption.received is not None
        if self.trainer.args.world_size <= 1:
            return asked
        flag = torch.tensor([float(asked)], device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(flag, reduction="sum") > 0)

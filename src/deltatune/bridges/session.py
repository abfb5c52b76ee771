"""One training session: transformers' Trainer put together from a recipe's parts."""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.checkpoints import last_complete_checkpoint, with_exact_checkpoints
from deltatune.bridges.data_order import DataOrder
from deltatune.bridges.lean_batches import LeanBatches, lean_batches
from deltatune.bridges.names import trained_parameters
from deltatune.bridges.optimizer import attach_optimizer
from deltatune.bridges.rhythm import keep_rhythm
from deltatune.bridges.short_attention import short_attention
from deltatune.bridges.trainer import with_objective
from deltatune.bridges.turns import resting_note
from deltatune.comparison.costs import CostMeter
from deltatune.data.collating import Collator
from deltatune.data.image_encoding import ImageCollator
from deltatune.recipe import Recipe
from deltatune.settings import Training
from deltatune.sites import Sites

__all__ = ["latest", "repeated_examples", "session", "step_of"]


class _Metered(Trainer):
    """A Trainer that tells a cost meter how many tokens each step took."""

    data_order: DataOrder
    tokens_in: Callable[[Mapping[str, Tensor]], tuple[int, int]]
    attention: Callable[[], AbstractContextManager[Any]]
    tokens_of_step = 0
    padded_tokens_of_step = 0

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None
    ) -> Tensor:
        """Count the micro-batch's tokens, then train on it."""
        tokens, padded = self.tokens_in(inputs)
        self.tokens_of_step += tokens
        self.padded_tokens_of_step += padded
        with self.attention():
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _track_num_input_tokens(self, inputs: Any) -> None:
        # transformers' own way would count the numbers of an image.
        tokens = torch.tensor(self.tokens_in(inputs)[0], device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: Trainer's guess asks all parameters at every step, and `costs.json` counts."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> DataOrder:
        return self.data_order


class _MeterCallback(TrainerCallback):
    """Starts and stops the clock around each optimizer step."""

    def __init__(self, trainer: _Metered, meter: CostMeter) -> None:
        self.trainer: _Metered = weakref.proxy(trainer)  # the trainer owns this callback
        self.meter = meter

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.trainer.tokens_of_step = self.trainer.padded_tokens_of_step = 0
        self.meter.step_started()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.meter.step_finished(
            self.trainer.tokens_of_step, padded_tokens=self.trainer.padded_tokens_of_step
        )


def arguments(recipe: Recipe, folder: Path, *, trains_base: bool) -> TrainingArguments:
    """Turn a recipe's training settings into transformers' own."""
    training = recipe.training
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=recipe.optimizer.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup,
        max_grad_norm=training.max_gradient_norm,
        seed=training.seed,
        bf16=training.precision == "bfloat16" and trains_base,
        use_cpu=not torch.accelerator.is_available(),  # else bf16 is refused where there is no GPU
        save_strategy="steps" if training.checkpoint_every else "epoch",
        save_steps=training.checkpoint_every or 500,
        save_total_limit=2,
        logging_steps=1,
        logging_first_step=True,
        include_num_input_tokens_seen="non_padding",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
    )


def _order(training: Training, examples: Any, collate: Collator | ImageCollator) -> DataOrder:
    return DataOrder(
        collate.lengths(examples),
        batch_size=training.batch_size,
        seed=training.seed,
        groups_by_length=training.groups_by_length,
    )


def _steps(training: Training, examples: int, args: TrainingArguments) -> int:
    """Return the optimizer steps of a whole run.

    Args:
        training: settings.
        examples: number of training examples.
        args: made from the settings, for the number of devices and processes.
    """
    batches = math.ceil(examples / (args.train_batch_size * args.world_size))
    of_epochs: int = math.ceil(training.epochs * math.ceil(batches / training.accumulation))
    return min(training.steps or of_epochs, of_epochs)


def _bound(training: Training, steps: int) -> int:
    """Return the bound on steps for transformers, which forgets the epochs over one; -1 for none.

    Args:
        training: settings.
        steps: of the whole run.
    """
    return steps if steps == training.steps else -1


def repeated_examples(examples: int, batch_size: int, processes: int) -> int:
    """Return how many examples an epoch takes twice, so that all processes have full batches.

    accelerate fills the last round with the first examples of the epoch; one process alone has no
    round to fill.
    """
    return -examples % (batch_size * processes) if processes > 1 else 0


def _repeat_note(examples: int, args: TrainingArguments) -> tuple[str, ...]:
    repeated = repeated_examples(examples, args.train_batch_size, args.world_size)
    if not repeated:
        return ()
    return (
        f"{repeated} of {examples} training examples come twice in each epoch, to fill the last "
        f"round of {args.world_size} processes: with a multiple of "
        f"{args.train_batch_size * args.world_size} examples none would",
    )


def session(
    model: nn.Module,
    examples: Any,
    collate: Collator | ImageCollator,
    recipe: Recipe,
    sites: Sites,
    *,
    objective: Any,
    folder: Path,
    meter: CostMeter,
    trains_base: bool,
    constant_loss: float | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Put a Trainer together: our loss, our groups, our checkpoints, our clock.

    Raises:
        NotComposable: packing is asked for, and the model or the objective cannot be packed.
    """
    trainer = _bare_trainer(
        model,
        examples,
        collate,
        recipe.training,
        arguments(recipe, folder, trains_base=trains_base),
        objective=objective,
        callbacks=callbacks,
    )
    trainer.add_callback(_MeterCallback(trainer, meter))
    attach_optimizer(
        trainer, update=recipe.update, sites=sites, **dataclasses.asdict(recipe.optimizer)
    )
    rhythm = recipe.carrier().rhythm(model)
    keep_rhythm(trainer, rhythm)
    trainer.add_callback(
        DeltaCallback(
            trainer,
            update=recipe.update,
            sites=sites,
            constant_loss=constant_loss,
            may_rest=rhythm.may_rest,
        )
    )
    steps = _steps(recipe.training, len(examples), trainer.args)
    note = resting_note(recipe.update, trained_parameters(model, sites), steps)
    trainer.notes = (*trainer.notes, *filter(None, [note]))
    made: Trainer = trainer
    return made


def _bare_trainer(
    model: nn.Module,
    examples: Any,
    collate: Collator | ImageCollator,
    training: Training,
    args: TrainingArguments,
    *,
    objective: Any,
    callbacks: Sequence[TrainerCallback],
) -> Any:
    """Make a Trainer with our loss, batches, order and checkpoints, and transformers' optimizer."""
    args.max_steps = _bound(training, _steps(training, len(examples), args))
    order = _order(training, examples, collate)
    lean = (
        lean_batches(model, objective, collate, training, order.lengths)
        if args.n_gpu <= 1  # data parallelism in one process divides rows, and there may be one
        else LeanBatches(collate=collate)
    )
    trainer_class: Any = with_objective(with_exact_checkpoints(_Metered))
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=examples,
        data_collator=lean.collate,
        objective=objective,
        callbacks=list(callbacks),
    )
    # Sharded weights are whole only inside the wrapper's own forward passes.
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    trainer.supervised_head = None if is_sharded else lean.head
    trainer.packing = lean.packing
    trainer.notes = (*lean.notes, *_repeat_note(len(examples), args))
    trainer.data_order = order
    trainer.tokens_in = collate.tokens_in
    trainer.attention = functools.partial(
        short_attention, model, in_bfloat16=training.precision == "bfloat16"
    )
    trainer.remove_callback(PrinterCallback)  # our progress shows what it would print
    return trainer


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    return last_complete_checkpoint(folder)


def step_of(checkpoint: Path | None) -> int:
    """Return the optimizer steps that a checkpoint stands after; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0

"""What a delta asks of a training loop, done in any Trainer."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from deltatune.bridges.carrier import Rhythm
from deltatune.bridges.trainer import ObjectiveTrainer
from deltatune.errors import NotComposable

__all__ = ["keep_rhythm"]


class _RhythmCallback(TrainerCallback):
    """Calls a delta before the first step and after each."""

    def __init__(self, rhythm: Rhythm) -> None:
        self.rhythm = rhythm

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the number of steps of the whole run."""
        if self.rhythm.begin is not None:
            self.rhythm.begin(state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call after the optimizer's step, before its gradients are gone."""
        if self.rhythm.after_step is not None:
            self.rhythm.after_step(state.global_step + 1)


def keep_rhythm(trainer: Trainer, rhythm: Rhythm) -> None:
    """Let a trainer do what a delta asks of its loop.

    Args:
        trainer: before `train()`.
        rhythm: of the delta in its model.

    Raises:
        NotComposable: terms for the loss or a need of labels, and a trainer that knows of neither.
    """
    if rhythm.auxiliary or rhythm.reading is not None:
        _add_terms(trainer, rhythm)
    if rhythm.begin is not None or rhythm.after_step is not None:
        trainer.add_callback(_RhythmCallback(rhythm))


def _add_terms(trainer: Trainer, rhythm: Rhythm) -> None:
    """Add the terms once to each step, whoever forms the rest of its loss.

    What peft's model adds by itself reaches only the loss that the model computes: it is lost in
    trainers that form their own, and counts once per micro-batch in those that do not divide.
    """
    if not isinstance(trainer, ObjectiveTrainer):
        raise NotComposable(
            f"the delta adds a term to the loss of each step, or reads its labels, which a plain "
            f"{type(trainer).__name__} cannot do: make its class with recipe.trainer_class"
        )
    trainer.auxiliary = (*trainer.auxiliary, *rhythm.auxiliary)
    trainer.apart = rhythm.apart
    trainer.while_reading = rhythm.while_reading

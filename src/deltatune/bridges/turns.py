"""Who trains now: an update's choice, done to the model's parameters before each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from deltatune.updates.update import TrainedParameter, Update

__all__ = ["Turns", "resting_note"]


class Turns:
    """Switches gradients on and off by name, and remembers who has had a turn.

    A tensor that rests requires no gradient: it gets none, so neither its values nor its moments
    move, no decay reaches it, and the backward pass spares its work. FSDP2 reads the switch of its
    shards whenever it gathers them.
    """

    def __init__(self, update: Update) -> None:
        """Bind the turns to the rule that gives them."""
        self.update = update
        self._parameters: Sequence[TrainedParameter] = ()
        self._live: frozenset[str] | None = None
        self._seen: frozenset[str] = frozenset()
        self._steps: Counter[str] = Counter()

    def begin(self, parameters: Sequence[TrainedParameter]) -> None:
        """Note all that may ever train, before the first step."""
        self._parameters = parameters
        self._live, self._seen = None, frozenset()
        self._steps.clear()

    def take(self, model: nn.Module, step: int, steps: int) -> None:
        """Let those train whose turn it is.

        Args:
            model: whose parameters are looked up now, since sharding replaces them.
            step: optimizer steps done, from 0.
            steps: of the whole run.
        """
        if not self.update.changes_who_trains:
            return
        live = self.update.live(step, self._parameters, steps=steps)
        names = frozenset(one.name for one in self._parameters) if live is None else live
        if names != self._live:
            self._switch(model, names)
        if not names <= self._seen:  # what trained so far may have waited for the newcomers
            self._steps.clear()
        self._seen |= names
        self._steps.update(names)

    def end(self, model: nn.Module) -> None:
        """Let all train again that may, also after a run that failed."""
        if self.update.changes_who_trains:
            self._switch(model, frozenset(one.name for one in self._parameters))

    def had_turns(self, at_least: int) -> frozenset[str]:
        """Return who trained in so many steps of this process since the last newcomer's first."""
        return frozenset(name for name, steps in self._steps.items() if steps >= at_least)

    def _switch(self, model: nn.Module, live: frozenset[str]) -> None:
        self._live = live
        parameters = dict(model.named_parameters())
        for described in self._parameters:
            parameters[described.name].requires_grad_(described.name in live)


def resting_note(update: Update, parameters: Sequence[TrainedParameter], steps: int) -> str:
    """Return a note on the parts that train in no step of a run; empty where all train.

    Args:
        update: the rule for who trains.
        parameters: all that may ever train.
        steps: optimizer steps of the whole run.
    """
    resting = {one.name for one in parameters} if update.changes_who_trains else set()
    for step in range(steps):
        if not resting:
            return ""
        live = update.live(step, parameters, steps=steps)
        resting = set() if live is None else resting - live
    parts = sorted({one.part_role for one in parameters if one.name in resting})
    if not parts:
        return ""
    return (
        f"{', '.join(parts)} of the delta train in none of the {steps} steps of this run, as the "
        f"update {type(update).__name__} has it: train longer, or change its rhythm, if they should"
    )

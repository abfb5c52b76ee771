"""Parts of a delta that take turns: some train while the others rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from deltatune.errors import InputError, unknown_name
from deltatune.parts import Source, declare
from deltatune.sites import Sites
from deltatune.updates.depth import check_ratio
from deltatune.updates.update import Factor, TrainedParameter

__all__ = ["Alternate", "Phase"]

WHOLE_RUN = 1.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One turn of a cycle.

    Args:
        parts: roles within the delta (`TrainedParameter.part_role`), such as `"location"`.
        steps: optimizer steps of each turn, from 1.
        learning_rate: factor of these parts, above 0.
        weight_decay: factor of these parts, from 0 up.
        clipped_apart: whether the norm of these parts' gradients is bounded by itself, by the same
            `training.max_gradient_norm`. Gradients in another unit would else shrink all others.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    parts: tuple[str, ...]
    steps: int
    learning_rate: float = 1.0
    weight_decay: float = 1.0
    clipped_apart: bool = False

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("a phase has no parts: give the roles of those that train in it")
        if self.steps < 1:
            raise InputError(
                f"steps={self.steps} is not allowed: give the optimizer steps of each turn of "
                f"{', '.join(self.parts)}, an integer from 1"
            )
        check_ratio(self.learning_rate)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(
                f"weight_decay={self.weight_decay:g} is not allowed: give a factor from 0 up"
            )


@declare(
    "updates",
    "alternate",
    source=Source(
        authors="Du et al.",
        year=2025,
        title="LoCA: Location-Aware Cosine Adaptation for Parameter-Efficient Fine-Tuning",
        arxiv="2502.06820",
        where="algorithm 1",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Alternate:
    """Let parts of the delta train by turns, in a cycle of phases.

    Turns are counted in optimizer steps of the run, so neither accumulation nor activations that
    are computed twice nor a resume shift them. A part that rests gets no gradient: its values and
    its moments stay as they are, to the last bit. The authors' code counts forward passes instead,
    which shortens the turns wherever a step has several. What is in no phase, a head for example,
    trains always; the schedule goes on for all.

    Args:
        phases: of one cycle, in order; a part belongs to one of them.
        until: where the alternation ends: a fraction of the run's optimizer steps (a float from 0
            to 1, rounded to the nearest step; 1.0 is the whole run), or a number of steps (an
            integer).
        then: which of the alternating parts train after it.
    """

    changes_who_trains: ClassVar[bool] = True

    phases: tuple[Phase, ...]
    until: int | float = WHOLE_RUN
    then: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            raise InputError("phases is empty: give one phase or more, such as parts and steps")
        parts = [part for phase in self.phases for part in phase.parts]
        for part in parts:
            if parts.count(part) > 1:
                raise InputError(f"part {part!r} is given twice in phases: leave it in one place")
        is_fraction = isinstance(self.until, float)
        if not (self.until >= 0 and (self.until <= WHOLE_RUN or not is_fraction)):
            raise InputError(
                f"until={self.until} is not allowed: give a fraction of the run's steps (a float "
                f"from 0 to 1), or a number of optimizer steps (an integer from 0)"
            )
        for part in self.then:
            if part not in parts:
                raise unknown_name("then: part", part, parts)

    @classmethod
    def example(cls) -> Alternate:
        """Return turns of the two factors of a low-rank delta, the up factor's first."""
        up, down = Phase(parts=("up",), steps=2), Phase(parts=("down",), steps=1, weight_decay=0.0)
        return cls(phases=(up, down), until=0.5, then=("up", "down"))

    def factors(self, parameters: Sequence[TrainedParameter], sites: Sites) -> Mapping[str, Factor]:
        """Return the factors of all parts that alternate.

        Raises:
            InputError: a part that no trained parameter has, or steps in which nothing would train.
        """
        self._check_reached(parameters)
        made = {part: _factor(phase, part) for phase in self.phases for part in phase.parts}
        return {one.name: made[one.part_role] for one in parameters if one.part_role in made}

    def live(
        self, step: int, parameters: Sequence[TrainedParameter], *, steps: int
    ) -> frozenset[str] | None:
        """Return the names of this step's phase and of all that is in no phase."""
        resting = self._parts() - set(self._turn(step, steps))
        return frozenset(one.name for one in parameters if one.part_role not in resting)

    def _parts(self) -> set[str]:
        return {part for phase in self.phases for part in phase.parts}

    def _turn(self, step: int, steps: int) -> tuple[str, ...]:
        """Return the alternating parts that train in a step."""
        end = round(self.until * steps) if isinstance(self.until, float) else self.until
        if step >= end:
            return self.then
        left = step % sum(phase.steps for phase in self.phases)
        for phase in self.phases:
            if left < phase.steps:
                return phase.parts
            left -= phase.steps
        raise AssertionError("a step lies in no phase of its cycle")

    def _check_reached(self, parameters: Sequence[TrainedParameter]) -> None:
        trained = {one.part_role for one in parameters}
        alternating = self._parts()
        for part in sorted(alternating - trained):
            known = ", ".join(sorted(trained)) or "none"
            raise InputError(
                f"the phase of part {part!r} reaches no trained parameter: what trains has the "
                f"parts {known}; name one of these, or choose a delta with such a part"
            )
        is_whole = isinstance(self.until, float) and self.until == WHOLE_RUN
        if not is_whole and not self.then and trained <= alternating:
            raise InputError(
                f"nothing trains after the alternation, which ends at until={self.until}: give the "
                f"parts that go on, as in then=({self.phases[0].parts[0]!r},)"
            )


def _factor(phase: Phase, part: str) -> Factor:
    return Factor(
        learning_rate=phase.learning_rate,
        weight_decay=phase.weight_decay,
        label=part,
        clipped_with="+".join(phase.parts) if phase.clipped_apart else "",
    )

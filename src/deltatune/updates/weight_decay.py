"""Who is spared from weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from deltatune.errors import unknown_name
from deltatune.parts import Source, declare
from deltatune.sites import ROLES, Sites
from deltatune.updates.update import Factor, TrainedParameter

__all__ = ["EXEMPTIONS", "WeightDecay"]

EXEMPTIONS = ("bias", "vector", *ROLES)


@declare(
    "updates",
    "weight_decay",
    source=Source(
        authors="Loshchilov and Hutter",
        year=2019,
        title="Decoupled Weight Decay Regularization",
        arxiv="1711.05101",
        where="algorithm 2",
    ),
)
@dataclass(frozen=True, kw_only=True)
class WeightDecay:
    """Set the weight decay of some parameters to 0 and leave that of all others.

    Args:
        exempt: any of "bias", "vector" (everything with one axis) and the roles of
            `deltatune.sites.ROLES`.
    """

    changes_who_trains: ClassVar[bool] = False

    exempt: tuple[str, ...] = ("bias", "norm")

    def __post_init__(self) -> None:
        for name in self.exempt:
            if name not in EXEMPTIONS:
                raise unknown_name("exempt", name, EXEMPTIONS)

    @classmethod
    def example(cls) -> WeightDecay:
        """Return the rule with its default."""
        return cls()

    def factors(self, parameters: Sequence[TrainedParameter], sites: Sites) -> Mapping[str, Factor]:
        """Return the factor of every exempt parameter."""
        return {
            parameter.name: Factor(weight_decay=0.0)
            for parameter in parameters
            if self._is_exempt(parameter)
        }

    def live(
        self, step: int, parameters: Sequence[TrainedParameter], *, steps: int
    ) -> frozenset[str] | None:
        """Return None: all train at every step."""
        return None

    def _is_exempt(self, parameter: TrainedParameter) -> bool:
        is_vector = "vector" in self.exempt and len(parameter.shape) <= 1
        return is_vector or parameter.role in self.exempt or parameter.part_role in self.exempt

"""LoRA+: the up factor of a low-rank change learns faster than the down factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from deltatune.errors import NotComposable
from deltatune.parts import Source, declare
from deltatune.sites import Sites
from deltatune.updates.depth import check_ratio
from deltatune.updates.update import Factor, TrainedParameter

__all__ = ["LoraPlus"]


@declare(
    "updates",
    "lora_plus",
    source=Source(
        authors="Hayou et al.",
        year=2024,
        title="LoRA+: Efficient Low Rank Adaptation of Large Models",
        arxiv="2402.12354",
        where="section 4, the ratio lambda",
    ),
)
@dataclass(frozen=True, kw_only=True)
class LoraPlus:
    """Multiply the learning rate of every up factor (B in the paper) by one ratio.

    Args:
        ratio: eta_B / eta_A in the paper, which recommends 16 as a start.
    """

    changes_who_trains: ClassVar[bool] = False

    ratio: float = 16.0

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @classmethod
    def example(cls) -> LoraPlus:
        """Return the rule with its default."""
        return cls()

    def factors(self, parameters: Sequence[TrainedParameter], sites: Sites) -> Mapping[str, Factor]:
        """Return the factor of every up factor.

        Raises:
            NotComposable: the trained change has no up factor.
        """
        up = [parameter.name for parameter in parameters if parameter.part_role == "up"]
        if not up:
            part_roles = ", ".join(sorted({parameter.part_role for parameter in parameters}))
            raise NotComposable(
                f"the update lora_plus needs a low-rank delta, whose parts are 'down' and 'up', "
                f"but what trains has the parts {part_roles}: leave lora_plus out"
            )
        return {name: Factor(learning_rate=self.ratio, label="up") for name in up}

    def live(
        self, step: int, parameters: Sequence[TrainedParameter], *, steps: int
    ) -> frozenset[str] | None:
        """Return None: all train at every step."""
        return None

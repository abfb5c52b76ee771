"""Lower layers learn more slowly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from deltatune.errors import InputError
from deltatune.parts import Source, declare
from deltatune.sites import Sites
from deltatune.updates.update import Factor, TrainedParameter

__all__ = ["LayerwiseDecay"]


@declare(
    "updates",
    "layerwise_decay",
    source=Source(
        authors="Howard and Ruder",
        year=2018,
        title="Universal Language Model Fine-tuning for Text Classification",
        arxiv="1801.06146",
        where="section 3.2, discriminative fine-tuning",
    ),
)
@dataclass(frozen=True, kw_only=True)
class LayerwiseDecay:
    """Multiply the rate of layer `l` of `L` by `decay ** (L - 1 - l)`.

    Embeddings lie below layer 0 and get `decay ** L`; what lies above the layers keeps its rate.

    Args:
        decay: in (0, 1]; the source divides by 2.6 from layer to layer (0.385), later work uses
            0.8 to 0.95.
    """

    changes_who_trains: ClassVar[bool] = False

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise InputError(
                f"decay={self.decay:g} is not allowed: give a number above 0, at most 1"
            )

    @classmethod
    def example(cls) -> LayerwiseDecay:
        """Return the rule with its default."""
        return cls()

    def factors(self, parameters: Sequence[TrainedParameter], sites: Sites) -> Mapping[str, Factor]:
        """Return the factor of everything in a layer or below."""
        factors = {}
        for parameter in parameters:
            layer = -1 if parameter.role == "embedding" else parameter.layer
            if layer is None:
                continue
            exponent = parameter.number_of_layers - 1 - layer
            label = f"layer {layer}" if layer >= 0 else ""
            factors[parameter.name] = Factor(learning_rate=self.decay**exponent, label=label)
        return factors

    def live(
        self, step: int, parameters: Sequence[TrainedParameter], *, steps: int
    ) -> frozenset[str] | None:
        """Return None: all train at every step."""
        return None

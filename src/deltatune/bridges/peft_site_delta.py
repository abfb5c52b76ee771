"""One delta of a layer, between the layer's whole tensors and the rows and columns of its place."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from deltatune.bridges.peft_cut import Cut
from deltatune.bridges.peft_place import Place
from deltatune.deltas.delta import Delta
from deltatune.errors import InputError
from deltatune.part import Entries

__all__ = ["SiteDelta"]


def _cut_covariance(cut: Cut, covariance: Tensor) -> Tensor:
    return cut.columns.take(cut.columns.take(covariance, 0), 1)


def _cut_gradient(cut: Cut, gradient: Tensor) -> Tensor:
    return cut.weight(gradient)


# How a statistic of a whole weight becomes that of the rows and columns that may change.
_CUTS = {
    "activation_covariance": _cut_covariance,
    "weight_gradient": _cut_gradient,
}


class SiteDelta(nn.Module):
    """The delta of one place of a layer, between the layer's whole tensors and the place's cut."""

    def __init__(self, delta: Delta, place: Place) -> None:
        """Hold the delta; the cut comes from the configuration and is not saved."""
        super().__init__()
        self.delta = delta
        self.place = place
        self.cut = place.cut()

    def output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the change of the place's outputs, `(..., in) -> (..., rows)`."""
        return self.delta.delta_output(self.cut.inputs(inputs), self._cut_weight(weight))

    def weight(self, weight: Tensor) -> Tensor:
        """Return the change of the layer's whole weight, `(out, in)` float32."""
        change = self.delta.delta_weight(self._cut_weight(weight))
        return self.cut.spread(change, *weight.shape)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """Return the change of the place's biases, `(rows,)`, or None."""
        return self.delta.delta_bias(None if bias is None else self.cut.rows.take(bias, 0))

    def start(self, weight: Tensor, statistics: Mapping[str, Tensor] | None = None) -> None:
        """Start the delta from the layer's whole weight and what was measured at the layer."""
        measured = {
            name: _CUTS[name](self.cut, tensor) for name, tensor in (statistics or {}).items()
        }
        self.delta.start(self.cut.weight(weight), measured or None)

    def check_loaded(self, adapter_name: str) -> None:
        """Refuse to act without what only the adapter's file holds.

        Raises:
            InputError: the delta has chosen entries or a start that was read off its base.
        """
        if self.delta.has_start or isinstance(self.delta.part, Entries):
            raise InputError(
                f"the adapter {adapter_name!r} was made from a saved configuration alone, which "
                f"does not hold its chosen entries or its start: load it with "
                f"PeftModel.from_pretrained, or make a new one with recipe.prepare"
            )

    def _cut_weight(self, weight: Tensor) -> Tensor:
        # Scattered rows are copied when cut: not for a delta that never looks at them.
        if self.delta.reads_weight:
            return self.cut.weight(weight)
        return self.cut.shaped_like(weight, self.delta.out_features, self.delta.in_features)

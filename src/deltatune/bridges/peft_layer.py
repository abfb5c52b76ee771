"""A frozen linear layer with deltas beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune import parts
from deltatune.bridges.peft_config import DeltaConfig, Place, part_of
from deltatune.deltas.delta import Delta
from deltatune.errors import InputError, NotMergeable
from deltatune.seeds import generator_for

__all__ = ["DeltaLayer"]


class SiteDelta(nn.Module):
    """The delta of one place of a layer, and the rows of the layer that it changes."""

    def __init__(self, delta: Delta, place: Place) -> None:
        """Hold the delta; rows are a buffer, rebuilt from the configuration when loading."""
        super().__init__()
        self.delta = delta
        self.place = place
        rows = place.row_indices()
        self.register_buffer("rows", rows, persistent=False)
        contiguous = place.rows is not None and len(place.rows) == 1
        self.range = tuple(place.rows[0]) if contiguous and place.rows else None

    def cut(self, weight: Tensor) -> Tensor:
        """Return the place's rows of a `(out, in)` weight or `(out,)` bias."""
        if self.range is not None:
            return weight[self.range[0] : self.range[1]]
        return weight if self.rows is None else weight[self.rows]

    def add_output(self, output: Tensor, change: Tensor) -> Tensor:
        """Add a change `(..., rows)` to the layer's output `(..., out)`."""
        if self.rows is None:
            return output + change
        if self.range is not None:
            start, stop = self.range
            pieces = (output[..., :start], output[..., start:stop] + change, output[..., stop:])
            return torch.cat(pieces, dim=-1)
        return output.index_add(-1, self.rows, change)  # type: ignore[arg-type]

    def spread(self, change: Tensor, out_features: int) -> Tensor:
        """Put the place's change into a zero change of the whole weight, `(out, in)`."""
        if self.rows is None:
            return change
        whole = change.new_zeros(out_features, *change.shape[1:])
        return whole.index_copy(0, self.rows, change)  # type: ignore[arg-type]


class DeltaLayer(nn.Module, BaseTunerLayer):
    """A linear layer of the base and, per adapter, one delta for each of its places.

    Works on `nn.Linear` and transformers' `Conv1D` (stored `(in, out)`); a fused weight has one
    delta per role, each added to its own rows only.
    """

    adapter_layer_names = ("delta_",)
    other_param_names = ()

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: DeltaConfig, places: Sequence[Place]
    ) -> None:
        """Wrap a layer and add the first adapter."""
        super().__init__()
        self.base_layer = base_layer
        self.delta_ = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged: tuple[Tensor, Tensor | None] | None = None
        base = self.get_base_layer()
        self.transposed = isinstance(base, Conv1D)
        stored = base.weight.shape
        self.out_features, self.in_features = reversed(stored) if self.transposed else stored
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, places)

    def update_layer(self, adapter_name: str, config: DeltaConfig, places: Sequence[Place]) -> None:
        """Add an adapter: one delta for each place."""
        if adapter_name in self.delta_:
            raise InputError(f"the adapter {adapter_name!r} exists: give another name")
        declaration = parts.declaration_of(config.options, "deltas")
        weight = self.weight_out_in()
        added = nn.ModuleDict()
        for place in places:
            rows = place.row_indices()
            cut = weight if rows is None else weight[rows.to(weight.device)]
            delta = declaration.implementation(
                config.options,
                cut.detach(),
                place,
                part=part_of(config, place),
                generator=generator_for(config.seed, place.site),
            )
            added[place.role] = SiteDelta(delta, place)
        self.delta_[adapter_name] = added.to(weight.device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def weight_out_in(self) -> Tensor:
        """Return the base weight as `(out, in)`, whatever its storage."""
        weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        return weight.T if self.transposed else weight

    def _deltas(self, adapter_name: str) -> list[SiteDelta]:
        if adapter_name not in self.delta_:
            return []
        return list(self.delta_[adapter_name].values())  # type: ignore[operator,arg-type]

    def delta_out_in(self, adapter_name: str) -> Tensor:
        """Return an adapter's change of the whole weight, `(out, in)` float32."""
        weight = self.weight_out_in()
        whole = torch.zeros(self.out_features, self.in_features, device=weight.device)
        for own in self._deltas(adapter_name):
            whole = whole + own.spread(own.delta.delta_weight(own.cut(weight)), self.out_features)
        return whole

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return an adapter's change in the orientation of the stored weight, float32."""
        change = self.delta_out_in(adapter)
        return change.T if self.transposed else change

    def get_delta_bias(self, adapter: str) -> Tensor | None:
        """Return an adapter's change of the bias, `(out,)`, or None."""
        bias: Tensor | None = self.get_base_layer().bias  # type: ignore[assignment]
        whole = None
        for own in self._deltas(adapter):
            change = own.delta.delta_bias(None if bias is None else own.cut(bias))
            if change is not None:
                spread = own.spread(change, self.out_features)
                whole = spread if whole is None else whole + spread
        return whole

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the base weight, computed in float32 and cast once.

        Raises:
            NotMergeable: a delta that cannot be folded.
            ValueError: `safe_merge` found a value that is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.delta_:
                continue
            for own in self._deltas(name):
                if not own.delta.is_mergeable:
                    raise NotMergeable(
                        f"{type(own.delta).__name__} of {own.place.site} cannot be folded into its base"
                    )
            self._fold(name, safe_merge)

    def _fold(self, name: str, safe_merge: bool) -> None:
        base = self.get_base_layer()
        weight: Tensor = base.weight  # type: ignore[assignment]
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        merged = (weight.data.float() + self.get_delta_weight(name).detach()).to(weight.dtype)
        if safe_merge and not bool(torch.isfinite(merged).all()):
            raise ValueError(f"folding the adapter {name!r} gives values that are not finite")
        if self._unmerged is None:
            self._unmerged = (weight.data, None if bias is None else bias.data)
        change = self.get_delta_bias(name)
        weight.data = merged.contiguous()
        if change is not None and bias is not None:
            bias.data = (bias.data.float() + change.detach()).to(bias.dtype)
        self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Give the base weight back, to the last bit."""
        if self._unmerged is not None:
            base = self.get_base_layer()
            base.weight.data, bias = self._unmerged  # type: ignore[union-attr]
            if bias is not None:
                base.bias.data = bias  # type: ignore[union-attr]
        self._unmerged = None
        self.merged_adapters = []

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Tell whether the change adds to the weight."""
        return True

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus every active adapter's change of it."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        output: Tensor = self.base_layer(inputs, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return output
        weight = self.weight_out_in()
        bias: Tensor | None = self.get_base_layer().bias  # type: ignore[assignment]
        for name in self.active_adapters:
            for own in self._deltas(name):
                change = own.delta.delta_output(inputs, own.cut(weight))
                moved = own.delta.delta_bias(None if bias is None else own.cut(bias))
                if moved is not None:
                    change = change + moved.to(change.dtype)
                output = own.add_output(output, change.to(output.dtype))
        return output

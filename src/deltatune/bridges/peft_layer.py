"""A frozen linear layer with deltas beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune import parts
from deltatune.bridges.peft_config import DeltaConfig
from deltatune.bridges.peft_cut import with_changes
from deltatune.bridges.peft_factored import Term, factored_linear, is_plain
from deltatune.bridges.peft_place import Place
from deltatune.bridges.peft_site_delta import SiteDelta
from deltatune.bridges.quantized import dequantized, is_quantized, stand_in
from deltatune.errors import NotMergeable, WorkError
from deltatune.seeds import generator_for

__all__ = ["DeltaLayer", "SiteDelta"]


class DeltaLayer(nn.Module, BaseTunerLayer):
    """A linear layer of the base and, per adapter, one delta for each of its places.

    Works on `nn.Linear`, also quantised by bitsandbytes, and transformers' `Conv1D` (stored
    `(in, out)`); a fused weight has one delta per role, each added to its own rows only. Several
    active adapters add up. Parameters of deltas are float32 whatever the base's dtype.
    """

    adapter_layer_names = ("delta_",)
    other_param_names = ()

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: DeltaConfig, places: Sequence[Place]
    ) -> None:
        """Wrap a layer and add the first adapter."""
        super().__init__()
        self.base_layer = base_layer
        self.delta_ = nn.ModuleDict()  # adapter name -> role -> SiteDelta
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self._configs: dict[str, DeltaConfig] = {}
        # The base's own parameters while others, with adapters folded in, stand in their place.
        self._unmerged: tuple[nn.Parameter, nn.Parameter | None] | None = None
        self.transposed = isinstance(base_layer, Conv1D)
        self.update_layer(adapter_name, config, places)

    def update_layer(self, adapter_name: str, config: DeltaConfig, places: Sequence[Place]) -> None:
        """Add an adapter: one delta for each place, each with its own source of random starts."""
        implementation = parts.declaration_of(config.options, "deltas").implementation
        weight = self._base_weight().detach() if config.awaits_tensors else self._values().detach()
        added = nn.ModuleDict()
        for place in places:
            delta = implementation(
                config.options,
                place.cut().weight(weight),
                place,
                part=place.part_of_cut(config.entries.get(place.site)),
                generator=generator_for(config.seed, place.site),
            )
            added[place.role] = own = SiteDelta(delta, place)
            if not config.awaits_tensors:
                own.start(weight)
        self.delta_[adapter_name] = added
        self._configs[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def start(self, adapter_name: str, statistics: Mapping[str, Tensor]) -> None:
        """Start an adapter's deltas from what was measured at this layer.

        Args:
            adapter_name: of the adapter.
            statistics: name (see `deltatune.statistics`) -> tensor of the whole weight.
        """
        weight = self._values().detach()
        for own in self.deltas(adapter_name):
            own.start(weight, statistics)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # peft would also cast to the base's dtype and back, which rounds the start values.
        adapter = self.delta_[adapter_name]
        if not any(parameter.is_meta for parameter in adapter.parameters()):
            adapter.to(device if device is not None else self._base_weight().device)

    def deltas(self, adapter_name: str) -> list[SiteDelta]:
        """Return an adapter's deltas, none if it does not change this layer."""
        if adapter_name not in self.delta_:
            return []
        return list(self.delta_[adapter_name].children())  # type: ignore[arg-type]

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base's output with the changes of all active adapters.

        Raises:
            InputError: an adapter whose chosen entries were never loaded.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            alone: Tensor = self.base_layer(inputs, *args, **kwargs)
            return alone
        if not args and not kwargs and (terms := self._terms(inputs)):
            return factored_linear(inputs, self._base_weight(), self._base_bias(), terms)
        output: Tensor = self.base_layer(inputs, *args, **kwargs)
        changes = []
        for name in self.active_adapters:
            for own in self._ready(name):
                change = own.output(inputs, self._read_by(own))
                of_bias = own.bias(self._base_bias())
                if of_bias is not None:
                    change = change + of_bias.to(change.dtype)
                changes.append((own.cut.rows, change))
        return with_changes(output, changes)

    def _terms(self, inputs: Tensor) -> list[Term]:
        """Return the changes of all active adapters as thin factors; none if one has no such."""
        narrows = torch.is_autocast_enabled(inputs.device.type)
        if narrows or not is_plain(self.base_layer) or inputs.dtype != self.base_dtype:
            return []
        terms = []
        for own in (own for name in self.active_adapters for own in self._ready(name)):
            factors = own.delta.acting_factors()
            if factors is None or own.bias(self._base_bias()) is not None:
                return []
            terms.append(Term(own.cut, factors))
        return terms

    def _ready(self, adapter_name: str) -> list[SiteDelta]:
        found = self.deltas(adapter_name)
        if found and self._configs[adapter_name].awaits_tensors:
            for own in found:
                own.check_loaded(adapter_name)
        return found

    def _base_weight(self) -> Tensor:
        """Return the base weight without any folded adapter, as `(out, in)`.

        A quantised one has its shape and device, but not its values.
        """
        layer: Any = self.get_base_layer()
        if is_quantized(layer):
            return stand_in(layer)
        weight = layer.weight if self._unmerged is None else self._unmerged[0]
        return weight.T if self.transposed else weight

    def _values(self) -> Tensor:
        """Return the base weight with its values, `(out, in)`."""
        layer: Any = self.get_base_layer()
        return dequantized(layer) if is_quantized(layer) else self._base_weight()

    def _read_by(self, own: SiteDelta) -> Tensor:
        """Return the base weight as a delta wants it."""
        return self._values() if own.delta.reads_weight else self._base_weight()

    @property
    def base_dtype(self) -> torch.dtype:
        """The dtype of the base weight; float32 of a quantised one."""
        return self._base_weight().dtype

    def _base_bias(self) -> Tensor | None:
        if self._unmerged is not None:
            return self._unmerged[1]
        return self.get_base_layer().bias  # type: ignore[return-value]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return an adapter's change of the weight, float32, oriented as the weight is stored."""
        weight = self._base_weight()
        change = torch.zeros(weight.shape, device=weight.device)
        for own in self._ready(adapter):
            change = change + own.weight(self._read_by(own))
        return change.T if self.transposed else change

    def get_delta_bias(self, adapter: str) -> Tensor | None:
        """Return an adapter's change of the whole bias, `(out,)` float32, or None."""
        whole = None
        for own in self._ready(adapter):
            change = own.bias(self._base_bias())
            if change is not None:
                spread = own.cut.rows.put(change, 0, self._base_weight().shape[0])
                whole = spread if whole is None else whole + spread
        return whole

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Tell whether the adapter only adds to the weight, so that LoRA can come near it."""
        return all(
            own.delta.is_mergeable and own.bias(self._base_bias()) is None
            for own in self.deltas(adapter_name)
        )

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the weight: all in float32 onto the untouched base, rounded once.

        The folded weight is a new parameter, so a weight tied to the base's keeps its values, and
        `unmerge` gives the base back to the last bit.

        Raises:
            NotMergeable: a delta that cannot be folded, or a change of a bias that the base lacks.
            WorkError: `safe_merge` found a value that is not finite; nothing was changed.
        """
        names = [
            name for name in check_adapters_to_merge(self, adapter_names) if name in self.delta_
        ]
        if not names:
            return
        for name in names:
            self._check_mergeable(name)
        base = self.get_base_layer()
        weight, bias = self._unmerged or (base.weight, base.bias)
        merged = [*self.merged_adapters, *names]
        folded = _folded(weight, [self.get_delta_weight(name) for name in merged])  # type: ignore[arg-type]
        of_bias = [change for name in merged if (change := self.get_delta_bias(name)) is not None]
        if safe_merge and not bool(torch.isfinite(folded).all()):
            raise WorkError(
                f"folding {', '.join(names)} gives values that are not finite: nothing was folded"
            )
        self._unmerged = (weight, bias)  # type: ignore[assignment]
        base.weight = folded
        if of_bias:
            base.bias = _folded(bias, of_bias)  # type: ignore[arg-type]
        self.merged_adapters = merged

    def _check_mergeable(self, name: str) -> None:
        for own in self.deltas(name):
            if is_quantized(self.get_base_layer()):
                raise NotMergeable(
                    f"{own.place.site} is quantised, too coarsely to fold a change into: put the "
                    f"adapter on the base without quantisation and fold it in there"
                )
            kind = type(own.delta.options).__name__
            if not own.delta.is_mergeable:
                raise NotMergeable(
                    f"the delta {kind} of {own.place.site} cannot be folded into its base: keep it "
                    f"as an adapter"
                )
            if self._base_bias() is None and own.bias(None) is not None:
                raise NotMergeable(
                    f"the delta {kind} changes the bias of {own.place.site}, which has none to "
                    f"fold it into: keep it as an adapter"
                )

    def unmerge(self) -> None:
        """Give the base its own parameters back, to the last bit."""
        if self._unmerged is not None:
            base = self.get_base_layer()
            weight, bias = self._unmerged
            # The model may have moved while the originals were out of its sight.
            weight.data = weight.data.to(base.weight.device)  # type: ignore[arg-type]
            base.weight = weight
            if bias is not None:
                bias.data = bias.data.to(weight.device)
                base.bias = bias
        self._unmerged = None
        self.merged_adapters = []

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self._configs.pop(adapter_name, None)


def _folded(stored: Tensor, changes: Sequence[Tensor]) -> nn.Parameter:
    wide = torch.promote_types(stored.dtype, torch.float32)
    total = stored.detach().to(wide)
    for change in changes:
        total = total + change
    return nn.Parameter(total.to(stored.dtype).contiguous(), requires_grad=stored.requires_grad)

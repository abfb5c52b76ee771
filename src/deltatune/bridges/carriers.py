"""How a delta gets into a model and out again: as one of ours, as one of peft's, or in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from torch import nn

from deltatune import parts
from deltatune.bridges.block_carrier import BlockCarrier
from deltatune.bridges.carrier import Carrier, Injection, Rhythm
from deltatune.bridges.in_place import merged_state, prepare_in_place, restore
from deltatune.bridges.measured_starts import start_from_statistics
from deltatune.bridges.peft_adalora import AdaLoraCarrier
from deltatune.bridges.peft_config import delta_config
from deltatune.bridges.peft_host import AdapterCarrier, PeftCarrier, adapted
from deltatune.bridges.peft_layer import DeltaLayer
from deltatune.bridges.peft_lora import save_as_lora
from deltatune.bridges.peft_prefix import PrefixCarrier
from deltatune.errors import NotMergeable
from deltatune.sites import Sites
from deltatune.weight_delta import WeightDelta

__all__ = ["Carrier", "InPlace", "Injection", "carrier_for", "carrier_of"]


@dataclass(frozen=True, kw_only=True)
class InPlace:
    """Base weights themselves train; the delta is then a difference of checkpoints."""


class _Ours(AdapterCarrier):
    def __init__(self, delta: Any) -> None:
        self.delta = delta

    def prepare(self, base: nn.Module, injection: Injection) -> nn.Module:
        config = delta_config(
            self.delta,
            injection.sites,
            injection.selection,
            modules_to_save=tuple(injection.trained_modules),
            seed=injection.seed,
            task_type=injection.task_type,
        )
        model = adapted(base, config)
        start_from_statistics(model, base, self.delta, injection)
        return model

    def figures(self, model: nn.Module, sites: Sites) -> Mapping[str, Any]:
        """Return what the deltas record of themselves, by place."""
        layers = [module for module in model.modules() if isinstance(module, DeltaLayer)]
        places = [own for layer in layers for own in layer.deltas("default")]
        found = {own.place.site: own.delta.figures() for own in places}
        told = {site: figures for site, figures in found.items() if figures}
        return {"delta_by_place": told} if told else {}

    def save_as_lora(self, model: nn.Module, folder: Path) -> None:
        save_as_lora(model, folder, "default")


class _InPlace:
    trains_base = True
    first_export = "merged"

    def __init__(self, delta: InPlace) -> None:
        self.delta = delta

    def prepare(self, base: nn.Module, injection: Injection) -> nn.Module:
        model = prepare_in_place(base, injection.sites, injection.selection)
        for name in injection.trained_modules:
            model.get_submodule(name).requires_grad_(True)
        return model

    def rhythm(self, model: nn.Module) -> Rhythm:
        return Rhythm()

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def figures(self, model: nn.Module, sites: Sites) -> Mapping[str, Any]:
        return {}

    def save(self, model: nn.Module, folder: Path, reload_base: Callable[[], nn.Module]) -> None:
        change = WeightDelta.from_difference(reload_base().state_dict(), merged_state(model))
        change.save(folder / "delta.safetensors")

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        WeightDelta.load(folder / "delta.safetensors").add_to_(base)
        return base

    def merged(self, model: nn.Module) -> nn.Module:
        return restore(model)

    def save_as_lora(self, model: nn.Module, folder: Path) -> None:
        raise NotMergeable(
            "in-place training changes whole weights, which is no LoRA: export with --to merged"
        )


def carrier_for(delta: Any, block: Any, roles: Mapping[str, str]) -> Carrier:
    """Return the carrier of a recipe's delta and of the block around it, if it has one.

    Raises:
        InputError: no delta, or no block.
    """
    host = carrier_of(delta)
    return host if block is None else BlockCarrier(host, block, roles)


@functools.singledispatch
def carrier_of(delta: Any) -> Carrier:
    """Return the carrier of a recipe's delta.

    Raises:
        InputError: `delta` is no options of a declared delta, no `PeftConfig` and not `InPlace`.
    """
    parts.declaration_of(delta, "deltas")
    return _Ours(delta)


@carrier_of.register
def _(delta: peft.PeftConfig) -> Carrier:
    return _HOSTS.get(delta.peft_type, PeftCarrier)(delta)


@carrier_of.register
def _(delta: InPlace) -> Carrier:
    return _InPlace(delta)


# Types of peft that need more than to be put into their places.
_HOSTS: Mapping[Any, Callable[[Any], Carrier]] = {
    peft.PeftType.ADALORA: AdaLoraCarrier,
    peft.PeftType.PREFIX_TUNING: PrefixCarrier,
}

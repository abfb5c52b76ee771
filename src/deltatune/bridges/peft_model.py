"""The tuner of the peft type `DELTA`: puts delta layers into a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from deltatune.bridges.peft_config import DeltaConfig, Place, places_by_module
from deltatune.bridges.peft_layer import DeltaLayer
from deltatune.errors import InputError, NotComposable

__all__ = ["DeltaModel"]


class DeltaModel(BaseTuner):
    """Carries every delta of ours as one peft tuner."""

    prefix = "delta_"
    tuner_layer_cls = DeltaLayer
    target_module_mapping: Mapping[str, list[str]] = {}  # type: ignore[assignment]

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        for path, module in model.named_modules():
            if isinstance(module, BaseTunerLayer) and not isinstance(module, DeltaLayer):
                raise NotComposable(
                    f"{path} already carries an adapter of another peft type "
                    f"({type(module).__name__}): merge it first, or start from the plain base"
                )
        known = {path for path, _ in model.named_modules()}
        for module_path in places_by_module(_ours(config)):
            if module_path not in known:
                raise InputError(
                    f"the adapter changes {module_path}, which this model does not have: load it on "
                    f"the base that it was trained on"
                )

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        # By full path only: a suffix would also match the same name in another tower.
        return key in (_ours(peft_config).target_modules or ())

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return _without_adapter_name(key, adapter_name)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = _ours(peft_config)
        places = places_by_module(config)[current_key]
        if isinstance(target, DeltaLayer):
            target.update_layer(adapter_name, config, places)
            return
        _check_kind(target, current_key, places)
        layer = DeltaLayer(target, adapter_name, config, places)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def _without_adapter_name(key: str, adapter_name: str) -> str:
    return re.sub(rf"(\.delta_)\.{re.escape(adapter_name)}(?=\.)", r"\1", key)


def _ours(config: PeftConfig) -> DeltaConfig:
    if not isinstance(config, DeltaConfig):
        raise NotComposable(
            f"a model carries one peft type at a time: {type(config).__name__} and DELTA cannot share it"
        )
    return config


def _check_kind(target: nn.Module, path: str, places: list[Place]) -> None:
    """Refuse what is not a plain linear layer.

    A quantised layer is a subclass or a stranger with packed weights; its dense weight is not there
    to be cut or folded.
    """
    plain: tuple[type[Any], ...] = (nn.Linear, Conv1D)
    if type(target) not in plain:
        raise InputError(
            f"{path} is a {type(target).__name__}: the peft type DELTA changes Linear and Conv1D "
            f"layers; select other places"
        )
    if not target.weight.dtype.is_floating_point:  # type: ignore[union-attr]
        raise InputError(f"{path} holds quantised weights, which DELTA cannot change: load it unquantised")
    is_conv = isinstance(target, Conv1D)
    if any(place.transposed != is_conv for place in places):
        raise InputError(f"{path} stores its weight the other way than the adapter expects: wrong base")

"""The tuner of the peft type `DELTA`: delta layers in, and every tensor accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune.accounting import account
from deltatune.base_record import BaseRecord, base_record
from deltatune.bridges.peft_config import DeltaConfig
from deltatune.bridges.peft_layer import DeltaLayer
from deltatune.bridges.peft_place import Place
from deltatune.bridges.peft_raw_layer import RawDeltaLayer, check_raw
from deltatune.bridges.quantized import is_quantized, keep_trainable
from deltatune.errors import InputError, NotComposable, nearest_first

__all__ = ["DeltaModel"]

STORED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Subclasses of Linear that are one: product and bias only written out in another way. By name,
# since importing them would cost every run their modules.
LINEAR_SUBCLASSES = frozenset({"transformers.models.falcon.modeling_falcon.FalconLinear"})


class DeltaModel(BaseTuner):
    """Carries every delta of ours as one peft tuner."""

    prefix = "delta_"
    tuner_layer_cls = DeltaLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - declared by peft as it is here

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        """Refuse what does not fit before the model is touched.

        Raises:
            NotComposable: the model carries adapters of another type.
            InputError: a place that this model does not have, or not in this shape; or a base that
                is not the one that the adapter was trained on.
        """
        super()._check_new_adapter_config(config)
        modules = dict(self.model.named_modules())
        for path, module in modules.items():
            if isinstance(module, BaseTunerLayer) and not isinstance(module, DeltaLayer):
                raise NotComposable(
                    f"{path} already carries an adapter of another peft type "
                    f"({type(module).__name__}), and DELTA cannot share a model with it: merge it "
                    f"first, or start from the plain base"
                )
        for path, places in _ours(config).places_of.items():
            if path not in modules:
                nearest = ", ".join(nearest_first(path, modules)[:3])
                raise InputError(
                    f"the adapter changes {path}, which this model does not have (nearest are "
                    f"{nearest}): load it on the base that it was trained on"
                )
            _check_layer(path, modules[path], places)
        _check_base(_ours(config), self.model)
        keep_trainable(self.model)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        # By full path only: a suffix would also match the same name in another tower. Not by
        # target_modules, which peft shortens to suffixes when there are twenty or more.
        return key in _ours(peft_config).places_of

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
        places = config.places_of[current_key]
        if isinstance(target, DeltaLayer):
            target.update_layer(adapter_name, config, places)
            return
        kind = RawDeltaLayer if _is_raw(places) else DeltaLayer
        layer = kind(target, adapter_name, config, places)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Put a module into the place of another, also where a head that trained whole comes out.

        peft hands the old module's weight on to the new one, which a head of several layers (that
        of RoBERTa) and stacked experts do not have; there the new module holds everything already.
        """
        if isinstance(child, (AuxiliaryTrainingWrapper, RawDeltaLayer)):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _check_merge_allowed(self) -> None:
        """Allow tied weights too: a folded weight is a parameter of its own."""

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Bring parameters to float32, or to the base's dtype where that is asked for."""
        for layer in self.model.modules():
            if isinstance(layer, DeltaLayer) and adapter_name in layer.delta_:
                dtype = torch.float32 if autocast_adapter_dtype else layer.base_dtype
                layer.delta_[adapter_name].to(dtype=dtype)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        before, named, after = key.rpartition(f".delta_.{adapter_name}.")
        return f"{before}.delta_.{after}" if named else key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Put the adapter's name into the keys, and account for every one of them.

        Raises:
            InputError: tensors that are missing, unknown, or of another shape.
        """
        given: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        wanted = {key: tuple(tensor.shape) for key, tensor in _adapter_tensors(model, adapter_name)}
        account(
            "the adapter's file",
            wanted,
            {key: tuple(tensor.shape) for key, tensor in given.items()},
            "it does not belong to this configuration or base; nothing was loaded",
        )
        _ours(config).awaits_tensors = False
        return given


def _adapter_tensors(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what an adapter's file has to hold: its deltas, and the modules that trained whole."""
    for path, layer in model.named_modules():
        kept: Any = {}  # adapter name -> module
        if isinstance(layer, DeltaLayer):
            kept, name = layer.delta_, "delta_"
        elif isinstance(layer, ModulesToSaveWrapper):
            kept, name = layer.modules_to_save, "modules_to_save"
        if adapter_name in kept:
            state = kept[adapter_name].state_dict()
            yield from ((f"{path}.{name}.{adapter_name}.{key}", state[key]) for key in state)


def _check_base(config: DeltaConfig, model: nn.Module) -> None:
    """Note the base of a new adapter, and refuse another one for an adapter that has its base."""
    present = base_record(model)
    if config.base:
        BaseRecord.from_plain(config.base).check(present)
    else:
        config.base = present.leaving_out(config.modules_to_save or ()).to_plain()


def _ours(config: Any) -> DeltaConfig:
    if not isinstance(config, DeltaConfig):
        raise NotComposable(
            f"a model carries one peft type at a time: {type(config).__name__} and DELTA cannot "
            f"share it"
        )
    return config


def _is_raw(places: tuple[Place, ...]) -> bool:
    return any(place.parameter != "weight" for place in places)


def _is_linear(layer: nn.Module) -> bool:
    """Other subclasses may be layers whose weight is read without a call."""
    kind = type(layer)
    return kind in (nn.Linear, Conv1D) or f"{kind.__module__}.{kind.__name__}" in LINEAR_SUBCLASSES


def _shape(layer: Any) -> tuple[int, ...] | None:
    """Return `(out, in)` of a layer that deltas can change, else None."""
    if is_quantized(layer):
        return int(layer.out_features), int(layer.in_features)
    if _is_linear(layer) and layer.weight.dtype in STORED:
        return tuple((layer.weight.T if isinstance(layer, Conv1D) else layer.weight).shape)
    return None


def _check_layer(path: str, module: nn.Module, places: tuple[Place, ...]) -> None:
    layer: Any = module.get_base_layer() if isinstance(module, DeltaLayer) else module
    if _is_raw(places):
        check_raw(path, layer, places)
        return
    shape = _shape(layer)
    if shape is None:
        dtype = getattr(getattr(layer, "weight", None), "dtype", "no weight")
        raise InputError(
            f"{path} is a {type(layer).__name__} ({dtype}): deltas change Linear and Conv1D layers "
            f"in float32, bfloat16, float16 or float64, and Linear layers that bitsandbytes has "
            f"quantised; leave it out of the selection, or load the base without quantisation"
        )
    transposed = isinstance(layer, Conv1D)
    for place in places:
        if place.transposed != transposed or place.shape != shape:
            raise InputError(
                f"{path} is {type(layer).__name__} {shape} (out, in), but the adapter was made for "
                f"{'Conv1D' if place.transposed else 'Linear'} {place.shape}: load it on the base "
                f"that it was trained on"
            )

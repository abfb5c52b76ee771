"""Adapters of ours as plain LoRA, where that is exact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from deltatune.bridges.peft_layer import DeltaLayer
from deltatune.errors import NotMergeable
from deltatune.files import save_tensors_atomically

__all__ = ["save_as_lora", "to_lora"]

ROOT = "base_model.model."


def to_lora(
    model: nn.Module, adapter_name: str = "default"
) -> tuple[peft.LoraConfig, dict[str, Tensor]]:
    """Write an adapter of the type `DELTA` as LoRA factors.

    The roles of a fused weight become one LoRA: their `down` factors stacked, their `up` factors
    put into their own rows, so the rank is the sum of ranks. The scale goes into `up`.

    Args:
        model: a `PeftModel` of the type `DELTA`.
        adapter_name: of the adapter.

    Returns:
        The configuration and the tensors of a peft LoRA adapter.

    Raises:
        NotMergeable: a delta that is no product of two factors.
    """
    config: Any = model.peft_config[adapter_name]  # type: ignore[index,union-attr]
    layers = {
        name.removeprefix(ROOT): layer
        for name, layer in model.named_modules()
        if isinstance(layer, DeltaLayer) and adapter_name in layer.delta_
    }
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, layer in layers.items():
        up, down = _factors(layer, adapter_name)
        ranks[path] = down.shape[0]
        tensors[f"{ROOT}{path}.lora_A.weight"] = down.contiguous()
        tensors[f"{ROOT}{path}.lora_B.weight"] = up.contiguous()
    tensors.update(_saved_modules(model, adapter_name))
    return _configuration(config, layers, ranks), tensors


def _configuration(
    config: Any, layers: Mapping[str, DeltaLayer], ranks: Mapping[str, int]
) -> peft.LoraConfig:
    rank = max(ranks.values())
    pattern = {path: own for path, own in ranks.items() if own != rank}
    return peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=sorted(ranks),
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=all(layer.transposed for layer in layers.values()),
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )


def _factors(layer: DeltaLayer, adapter_name: str) -> tuple[Tensor, Tensor]:
    ups, downs = [], []
    weight = layer.weight_out_in()
    for own in layer._deltas(adapter_name):
        factors = own.delta.low_rank_factors()
        if factors is None or own.delta.delta_bias(None) is not None:
            raise NotMergeable(
                f"{type(own.delta).__name__} of {own.place.site} is no product of two thin factors, "
                f"so it is no LoRA: export it as peft or merged"
            )
        ups.append(own.spread(factors[0].detach(), layer.out_features))
        downs.append(factors[1].detach())
    return torch.cat(ups, dim=1).to(weight.device), torch.cat(downs, dim=0)


def _saved_modules(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    return {name: tensor for name, tensor in state.items() if ".delta_." not in name}


def save_as_lora(model: nn.Module, folder: Path, adapter_name: str = "default") -> None:
    """Write an adapter of ours into a folder that plain peft loads.

    Raises:
        NotMergeable: see `to_lora`.
    """
    config, tensors = to_lora(model, adapter_name)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    unshared = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_tensors_atomically(folder / "adapter_model.safetensors", unshared, {"format": "pt"})

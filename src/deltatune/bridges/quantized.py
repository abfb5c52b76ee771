"""Linear layers of bitsandbytes, whose weight is packed into 4 or 8 bits: its shape and its values.

Such a layer runs as it is, and a delta adds to its output. The packed weight takes no change.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn

__all__ = [
    "dequantized",
    "is_packed",
    "is_quantized",
    "keep_trainable",
    "shape_of_packed",
    "stand_in",
]

# By name, since importing the library would cost every run its modules.
PACKED = frozenset({"Params4bit", "Int8Params"})


def is_packed(parameter: Any) -> bool:
    """Tell whether a parameter holds bits of bitsandbytes, not numbers."""
    kind = type(parameter)
    return kind.__name__ in PACKED and kind.__module__.startswith("bitsandbytes.")


def is_quantized(layer: nn.Module) -> bool:
    """Tell whether a layer is a linear one with a packed weight."""
    return isinstance(layer, nn.Linear) and is_packed(layer.weight)


def shape_of_packed(parameter: Any) -> tuple[int, ...]:
    """Return the shape of the weight that a packed parameter stands for."""
    # Before it is on its device, a weight is not packed yet.
    state = getattr(parameter, "quant_state", None)
    return tuple(int(size) for size in (parameter if state is None else state).shape)


def stand_in(layer: nn.Linear) -> Tensor:
    """Return a float32 tensor of the weight's shape and device, of one number in memory."""
    one = torch.zeros((), device=layer.weight.device)
    return one.expand(layer.out_features, layer.in_features)


@torch.no_grad()
def dequantized(layer: nn.Linear) -> Tensor:
    """Return what the packed weight stands for, `(out, in)` float32: a new tensor at each call."""
    # peft's function for whole modules would put another parameter into the layer.
    weight: Any = layer.weight
    values: Tensor = dequantize_bnb_weight(weight, state=getattr(layer, "state", None))
    return values.detach().float()


def keep_trainable(model: nn.Module) -> None:
    """Let gradients pass all packed weights of a model, whatever it computes before training.

    On processors with AVX512-BF16 a first pass without gradients lays 4-bit weights out for a
    kernel that has no backward pass (bitsandbytes 0.50): training after it would silently lose the
    gradients of all layers below, and the scales are rounded to bfloat16.
    """
    for module in model.modules():
        if is_quantized(module) and getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            module.state_dict()  # lays back what is laid out already

"""Attention over short sequences in float32, where a processor's bfloat16 kernel is slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["ShortAttention", "short_attention"]

# Tokens. Below this torch's kernel works in blocks of 32, and in bfloat16 the matrix unit's set-up
# for each block outweighs the products (benchmarks/short_attention).
SHORT = 192
POSITIONAL = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _is_short(query: torch.Tensor, key: torch.Tensor) -> bool:
    if query.device.type != "cpu" or max(query.shape[-2], key.shape[-2]) >= SHORT:
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return query.dtype == torch.bfloat16


def _in_float32(value: Any) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if is_float else value


class ShortAttention(TorchFunctionMode):
    """Computes short attention of bfloat16 tensors on a CPU in float32, and rounds its output.

    Longer sequences, other devices and other functions are left to torch.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Take attention's inputs to float32 where that is faster."""
        options = dict(kwargs or {})
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **options)
        inputs = {**dict(zip(POSITIONAL, args, strict=False)), **options}
        if not _is_short(inputs["query"], inputs["key"]):
            return func(*args, **options)
        with torch.autocast("cpu", enabled=False):
            output: torch.Tensor = func(**{name: _in_float32(inputs[name]) for name in inputs})
        return output.to(torch.bfloat16)


def short_attention(model: nn.Module, *, in_bfloat16: bool) -> AbstractContextManager[Any]:
    """Return what training steps of a model run in."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return ShortAttention() if in_bfloat16 and on_cpu else nullcontext()

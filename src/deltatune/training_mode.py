"""The training mode of every module, remembered and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "mode_kept"]


@contextmanager
def mode_kept(model: nn.Module) -> Iterator[None]:
    """Give every module the mode back that it had before a block, also where they differ."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in a block without dropout and without gradients."""
    with mode_kept(model), torch.no_grad():
        model.eval()
        yield

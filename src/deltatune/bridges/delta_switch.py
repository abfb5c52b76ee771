"""Switching a model's delta off for one pass, without touching who trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from deltatune.errors import NotComposable

__all__ = ["adapters_off", "are_adapters_off", "original_weights"]


def adapters_off(model: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """Return what switches all adapters of a model off for the length of a block.

    peft's own switch also sets who requires a gradient, at each turn of it, which is not its own
    to say: parts of a delta may rest.

    Raises:
        NotComposable: an adapter that is no layer of the model (a prefix).
    """
    if isinstance(model, peft.PeftModel) and model.active_peft_config.is_prompt_learning:
        raise NotComposable(
            f"{model.active_peft_config.peft_type.value} is no layer of the model that could be "
            f"switched off for one pass: take another delta, such as low_rank"
        )
    layers = _switched(model)

    @contextmanager
    def off() -> Iterator[None]:
        before = [layer._disable_adapters for layer in layers]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, was_off in zip(layers, before, strict=True):
                layer._disable_adapters = was_off

    return off


def are_adapters_off(model: nn.Module) -> Callable[[], bool]:
    """Return what tells whether all adapters of a model are switched off, by whomever."""
    layers = _switched(model)
    return lambda: bool(layers) and all(layer._disable_adapters for layer in layers)


def _switched(model: nn.Module) -> list[Any]:
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


def original_weights(
    model: nn.Module, originals: Mapping[str, Tensor]
) -> Callable[[], AbstractContextManager[Any]]:
    """Return what puts other values in the place of parameters for the length of a block.

    Args:
        model: whose parameters are looked up by name each time.
        originals: name -> values; they follow their parameter to its device.
    """
    kept = dict(originals)

    @contextmanager
    def original() -> Iterator[None]:
        parameters = dict(model.named_parameters())
        trained = {}
        for name in kept:
            parameter = parameters[name]
            kept[name] = kept[name].to(parameter.device)
            trained[name], parameter.data = parameter.data, kept[name]
        try:
            yield
        finally:
            for name, values in trained.items():
                parameters[name].data = values

    return original

"""Heads for other classes: one that was trained to tell cats from dogs says nothing of cars."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deltatune import sites
from deltatune.seeds import generator_for

__all__ = ["named_classes", "redraw_head"]


def named_classes(config: Any) -> tuple[str, ...]:
    """Return the classes that a checkpoint's head tells apart, if it names them.

    `LABEL_0`, `LABEL_1` and so on are what transformers writes where nobody gave names.
    """
    names = tuple(str(config.id2label[i]) for i in sorted(config.id2label))
    return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def redraw_head(model: nn.Module, classes: int, seed: int) -> tuple[str, ...]:
    """Draw the weights anew that give a score to each class, as transformers draws a new layer.

    Args:
        model: with a head of the right size.
        classes: number of them.
        seed: of the run.

    Returns:
        The names of the parameters that were drawn.
    """
    untyped: Any = model
    spread = float(getattr(untyped.config, "initializer_range", 0.02))
    drawn = []
    for site in sites.of(model).with_roles("head"):
        if site.out_features != classes:
            continue
        weight = model.get_parameter(site.weight)
        noise = torch.randn(weight.shape, generator=generator_for(seed, f"head {site.weight}"))
        _set(weight, spread * noise)
        drawn.append(site.weight)
        if site.bias is not None:
            _set(model.get_parameter(site.bias), torch.zeros(classes))
            drawn.append(site.bias)
    return tuple(drawn)


def _set(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)

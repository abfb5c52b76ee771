"""The body of a causal language model: the module whose output its head takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from deltatune.bridges.supervised_head import bodies, causal_model
from deltatune.errors import NotComposable
from deltatune.sites import Sites
from deltatune.training_mode import evaluating

__all__ = ["Body", "body_of"]


@dataclass(frozen=True)
class Body:
    """The body and the model around it.

    Args:
        model: the causal language model of transformers, without wrappers.
        module: the body in it.
        d_model: width of its output.
    """

    model: PreTrainedModel
    module: nn.Module
    d_model: int

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name."""
        names = list(inspect.signature(type(self.module).forward).parameters)[1:]
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def layers_below(self, sites: Sites, changed: Sequence[str]) -> list[nn.Module]:
        """Return the layers from the input that have no changed weight, nor has what is before."""
        chosen = [site for weight in changed for site in sites.at_weight(weight)]
        lowest = min((site.layer for site in chosen if site.layer is not None), default=0)
        if any(site.layer is None and site.role == "embedding" for site in chosen):
            return []
        stacks = [
            module
            for module in self.module.modules()
            if isinstance(module, nn.ModuleList) and len(module) == sites.number_of_layers
        ]
        return list(stacks[0])[:lowest] if len(stacks) == 1 else []

    def with_hidden_states(self, output: Any, hidden_states: Tensor) -> Any:
        """Return an output of the body with other last hidden states."""
        if isinstance(output, ModelOutput):
            changed = type(output)(**output)
            changed["last_hidden_state"] = hidden_states
            return changed
        return (hidden_states, *output[1:])


def body_of(model: nn.Module) -> Body:
    """Find the body by a pass over two tokens: the module whose output goes on to the head.

    Raises:
        NotComposable: no causal language model of transformers, or none of its modules is one.
    """
    try:
        inner = causal_model(model)
    except TypeError as error:
        raise NotComposable(f"{error}: a block around the body needs one") from error
    for module in bodies(inner):
        if (width := _width(inner, module)) is not None:
            return Body(inner, module, width)
    raise NotComposable(
        f"the module of {type(inner).__name__} whose output its head takes is not known: a block "
        f"around it cannot act there"
    )


def _width(model: PreTrainedModel, module: nn.Module) -> int | None:
    """Return the width of a module's output in a pass of the model; None if it does not run."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda _, __, output: found.append(output[0]))
    ids = torch.tensor([[3, 4]], device=next(model.parameters()).device)
    try:
        with evaluating(model):
            model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return int(found[0].shape[-1]) if len(found) == 1 and found[0].dim() == 3 else None

"""The feed-forward network of every layer: its projections, by role, and what lies between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.errors import NotComposable
from deltatune.seeds import generator_for
from deltatune.sites import Site, Sites
from deltatune.training_mode import evaluating

__all__ = ["FeedForward", "feed_forwards"]

ACTIVATIONS = ("act_fn", "activation_fn", "activation", "act", "intermediate_act_fn")
PROJECTIONS = ("gate", "up", "down")


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward network.

    Args:
        layer: its index.
        path: of its module in the model.
        module: `(..., d_model) -> (..., d_model)`.
        sites: role -> site: `up`, `down`, and `gate` where it is gated.
        activation: of the gate, or of `up` where there is none.
    """

    layer: int
    path: str
    module: nn.Module
    sites: Mapping[str, Site]
    activation: Any

    def projection(self, role: str) -> nn.Module:
        """Return the module of a role."""
        return self.module.get_submodule(self.sites[role].module.removeprefix(f"{self.path}."))

    def inner(self, projected: Mapping[str, Tensor]) -> Tensor:
        """Return what goes into `down`, from the outputs of the other projections."""
        if "gate" in projected:
            return self.activation(projected["gate"]) * projected["up"]  # type: ignore[no-any-return]
        return self.activation(projected["up"])  # type: ignore[no-any-return]


def feed_forwards(model: nn.Module, sites: Sites) -> list[FeedForward]:
    """Find the feed-forward network of every layer, and check that each does what is known of it.

    Args:
        model: the base, with or without adapters elsewhere.
        sites: of the base.

    Raises:
        NotComposable: a layer without one of its own, or one that computes something else.
    """
    found = [_of_layer(model, sites, layer) for layer in range(sites.number_of_layers)]
    for one in found:
        _check(one)
    return found


def _of_layer(model: nn.Module, sites: Sites, layer: int) -> FeedForward:
    own: dict[str, list[Site]] = {
        role: [s for s in sites.with_roles(role) if s.layer == layer] for role in PROJECTIONS
    }
    if len(own["down"]) != 1 or len(own["up"]) != 1 or len(own["gate"]) > 1:
        numbers = ", ".join(f"{len(found)} {role}" for role, found in own.items())
        raise NotComposable(
            f"layer {layer} has {numbers}, and routed experts need one feed-forward network in "
            f"each layer: take another recipe for mixtures of experts"
        )
    chosen = {role: one[0] for role, one in own.items() if one}
    modules = {site.module for site in chosen.values()}
    parents = {module.rpartition(".")[0] for module in modules}
    if len(modules) != len(chosen) or len(parents) != 1:
        raise NotComposable(
            f"the projections of layer {layer} ({', '.join(sorted(modules))}) are fused or lie in "
            f"several modules, which routed experts cannot share yet: take another model"
        )
    path = parents.pop()
    module = model.get_submodule(path)
    activation = next((getattr(module, a) for a in ACTIVATIONS if hasattr(module, a)), None)
    if activation is None:
        raise NotComposable(f"the activation of {path} ({type(module).__name__}) is not known")
    return FeedForward(layer, path, module, chosen, activation)


def _check(one: FeedForward) -> None:
    weight = next(one.module.parameters())
    rows = torch.randn(3, one.sites["up"].in_features, generator=generator_for(0, "feed-forward"))
    rows = rows.to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)
    with evaluating(one.module):
        wanted = one.module(rows)
        projected = {r: one.projection(r)(rows) for r in one.sites if r != "down"}
        given = one.projection("down")(one.inner(projected))
    if wanted.shape != given.shape or not torch.allclose(wanted, given, rtol=1e-2, atol=1e-4):
        raise NotComposable(
            f"{one.path} ({type(one.module).__name__}) computes something else than its "
            f"projections and its activation: routed experts cannot share them"
        )

"""Tiny models with a delta of ours in them, for every test of deltas and of the peft type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deltatune import parts, sites
from deltatune.bridges.carriers import Injection, carrier_of
from deltatune.bridges.peft_config import DeltaConfig, delta_config
from deltatune.bridges.peft_layer import DeltaLayer
from deltatune.part import Entries, Part, Selection, Whole
from deltatune.seeds import generator_for
from deltatune.selections.by_role import ByRole
from deltatune.sites import Site, Sites
from tests.calibrated import calibration_for
from tests.models import tiny

ROLES = ("query", "value")


def options_of(kind: str) -> Any:
    """Options of a declared delta: its example, or its defaults."""
    options = parts.known("deltas")[kind].options
    return options.example() if hasattr(options, "example") else options()


def some_entries(site: Site, out_features: int) -> Entries:
    """About one entry in seven of a site, as flat indices into its whole weight."""
    rows = torch.arange(out_features) if isinstance(site.part, Whole) else site.part.indices
    flat = rows[:, None] * site.in_features + torch.arange(site.in_features)
    return Entries(flat.flatten()[3::7])


def selection_for(kind: str, model: nn.Module, places: Sites) -> Selection:
    """Query and value: whole where the delta takes that, else single entries of them."""
    whole = ByRole(roles=ROLES)(model, places)
    if Whole in parts.known("deltas")[kind].implementation.acts_on:
        return whole
    chosen: dict[str, Part] = {}
    for weight in whole:
        found = places.at_weight(weight)
        out_features = sum(site.out_features for site in found)
        pieces = [some_entries(site, out_features).indices for site in found if site.role in ROLES]
        chosen[weight] = Entries(torch.cat(pieces))
    return chosen


def config_for(kind: str, model: nn.Module, *, seed: int = 0, **fields: Any) -> DeltaConfig:
    """The configuration of a delta at the query and value of a model without adapters."""
    places = sites.of(model)
    chosen = selection_for(kind, model, places)
    return delta_config(options_of(kind), places, chosen, seed=seed, **fields)


def with_delta(
    kind: str,
    name: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    base: Any = None,
) -> Any:
    """A tiny causal language model with a fresh delta, in evaluation mode."""
    base = tiny(name, "causal_lm").to(dtype) if base is None else base
    places = sites.of(base)
    injection = Injection(
        sites=places,
        selection=selection_for(kind, base, places),
        seed=seed,
        calibration=calibration_for(base),
    )
    return carrier_of(options_of(kind)).prepare(base, injection).eval()


def shaken(model: Any, scale: float = 0.2) -> Any:
    """Move every trainable value away from its start, always by the same numbers."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator_for(5, name))
            parameter.data += scale * noise.to(parameter.dtype)
    return model


def token_ids() -> Tensor:
    """Fixed tokens, `(2, 9)`."""
    return torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))


def logits_of(model: Any) -> Tensor:
    """The logits of `token_ids`, without a graph."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=token_ids()).logits
    return logits


def layers_of(model: Any) -> dict[str, DeltaLayer]:
    """Path in the base -> delta layer."""
    return {
        path.removeprefix("base_model.model."): module
        for path, module in model.named_modules()
        if isinstance(module, DeltaLayer)
    }

"""Routed experts: low-rank changes of one frozen feed-forward network, some for each token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltatune.blocks.block import Block, Surroundings
from deltatune.blocks.routing import Routes, load_balance, top_k_routes, top_p_routes
from deltatune.bridges.feed_forward import FeedForward, feed_forwards
from deltatune.bridges.names import unwrapped
from deltatune.errors import InputError
from deltatune.parts import Source, declare

__all__ = ["RoutedExperts", "RoutedExpertsBlock"]


@dataclass(frozen=True, kw_only=True)
class RoutedExperts:
    """Options of the routed experts.

    Args:
        rank: of every expert's change of every projection, from 1.
        alpha: changes are scaled by alpha / rank.
        experts: of each layer, from 1.
        top_k: experts of a token, with `routing: top_k`.
        routing: `top_k`, or `top_p`: as many as reach `threshold`.
        threshold: probability, in (0, 1].
        renormalise: with `top_p`, whether weights add up to 1; the published code leaves them,
            which scales the output down from the first step on.
        dropout: probability that an input of a change is dropped while training, in [0, 1).
        jitter: while training, inputs are multiplied by numbers from 1 - jitter to 1 + jitter.
        router_deviation: standard deviation of the router's start.
        auxiliary: loss of uneven load: `top_k` counts every choice, `switch` the first.
        auxiliary_weight: of that loss, from 0.
        per_layer: whether it is the mean over the layers; else their tokens are pooled, so that one
            layer can make up for another.
    """

    rank: int = 16
    alpha: float = 32.0
    experts: int = 8
    top_k: int = 2
    routing: Literal["top_k", "top_p"] = "top_k"
    threshold: float = 0.8
    renormalise: bool = True
    dropout: float = 0.05
    jitter: float = 0.0
    router_deviation: float = 0.02
    auxiliary: Literal["top_k", "switch"] = "top_k"
    auxiliary_weight: float = 1e-3
    per_layer: bool = False

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("experts", 1), ("top_k", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name}={getattr(self, name)} is not allowed: give an integer from {least}"
                )
        if self.top_k > self.experts:
            raise InputError(
                f"top_k={self.top_k} is not allowed: give at most experts={self.experts}"
            )
        for name in ("dropout", "jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"{name}={getattr(self, name)} is not allowed: give a number in [0, 1)"
                )
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold={self.threshold} is not allowed: give one in (0, 1]")
        for name in ("alpha", "router_deviation", "auxiliary_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value} is not allowed: give a finite number from 0")


@declare(
    "blocks",
    "routed_experts",
    options=RoutedExperts,
    source=Source(
        authors="Li et al.",
        year=2024,
        title=(
            "MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA based Mixture of "
            "Experts"
        ),
        arxiv="2404.15159",
        where="equations 5 to 9, algorithm 1",
    ),
)
class RoutedExpertsBlock(Block):
    """Make a mixture of experts of every feed-forward network: one frozen network, many changes.

    A linear router picks experts for each token; an expert is the whole frozen network with a
    low-rank change of each projection. All experts share the first projections of a token, which
    are computed once; the last one reads what differs. Changes and routers are and compute in
    float32, and outputs are summed in float32.

    Attributes:
        shares_projections: whether what experts share is computed once a token; else once an
            expert, for comparison.
    """

    Options: ClassVar[type[Any]] = RoutedExperts
    adds_to_loss = True
    why_no_change = "which expert acts depends on the token"
    options: RoutedExperts

    def __init__(
        self, options: RoutedExperts, networks: Sequence[FeedForward], generator: torch.Generator
    ) -> None:
        """Draw routers and down factors; up factors are 0."""
        super().__init__(options)
        self.layers = nn.ModuleDict(
            {str(one.layer): _Experts(options, one, generator) for one in networks}
        )
        self.shares_projections = True
        self._mask: Tensor | None = None  # (batch, seq), of the batch in the model

    @classmethod
    def made_for(
        cls, options: RoutedExperts, around: Surroundings, generator: torch.Generator
    ) -> RoutedExpertsBlock:
        """Make the experts of every layer; see `Block`."""
        return cls(options, feed_forwards(_inner(around.model), around.sites), generator)

    def install(self, around: Surroundings) -> None:
        """Let the experts stand in for every feed-forward network."""
        inner = _inner(around.model)
        for one in feed_forwards(inner, around.sites):
            experts: Any = self.layers[str(one.layer)]
            experts.install(one, self)
        inner.register_forward_pre_hook(self._begin, with_kwargs=True)

    def _begin(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")
        for experts in self._experts():
            experts.routed = None

    def _experts(self) -> list[_Experts]:
        return list(self.layers.children())  # type: ignore[arg-type]

    def role_of(self, below: Sequence[str]) -> str:
        """Return the role of a parameter: `router`, `down` or `up`."""
        return {"router": "router", "lora_A": "down", "lora_B": "up"}[below[2]]

    def auxiliary(self, model: nn.Module) -> Tensor:
        """Return the weighted loss of uneven load in the last forward pass, `()`."""
        routed = [one.routed for one in self._experts() if one.routed is not None]
        tokens = len(routed[0][0])
        mask = self._mask
        is_of_tokens = mask is not None and mask.dim() == 2 and mask.numel() == tokens
        kept = (
            mask.flatten().bool()  # type: ignore[union-attr]
            if is_of_tokens
            else torch.ones(tokens, dtype=torch.bool, device=routed[0][0].device)
        )
        form = self.options.auxiliary
        if self.options.per_layer:
            losses = [load_balance(p, c, kept, form=form) for p, c in routed]
            return self.options.auxiliary_weight * torch.stack(losses).mean()
        probabilities, choices = (torch.cat(pooled) for pooled in zip(*routed, strict=True))
        whole = load_balance(probabilities, choices, kept.repeat(len(routed)), form=form)
        return self.options.auxiliary_weight * whole

    def figures(self) -> Mapping[str, Any]:
        """Return the share of choices that each expert had in training, by layer."""
        loads = {name: one.load for name, one in zip(self.layers, self._experts(), strict=True)}
        return {
            "expert_share_by_layer": {
                name: (load / load.sum().clamp(min=1)).tolist() for name, load in loads.items()
            }
        }


class _Experts(nn.Module):
    """The experts of one layer."""

    network: FeedForward
    block: RoutedExpertsBlock
    load: Tensor

    def __init__(
        self, options: RoutedExperts, network: FeedForward, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.options = options
        rank, number = options.rank, options.experts
        d_model = network.sites["up"].in_features
        deviation = options.router_deviation
        self.router = nn.Parameter(torch.randn(number, d_model, generator=generator) * deviation)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        for role, site in network.sites.items():
            bound = 1 / math.sqrt(site.in_features)
            drawn = torch.rand(number, rank, site.in_features, generator=generator)
            self.lora_A[role] = nn.Parameter((2 * drawn - 1) * bound)
            self.lora_B[role] = nn.Parameter(torch.zeros(number, site.out_features, rank))
        self.register_buffer("load", torch.zeros(number), persistent=False)
        self.routed: tuple[Tensor, Tensor] | None = None  # of the last pass, in training

    def install(self, network: FeedForward, block: RoutedExpertsBlock) -> None:
        module: Any = network.module
        original = module.forward
        # Not as submodules: the network belongs to the model, and the block holds this.
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "block", block)

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not block.acts:
                return original(hidden_states, *args, **kwargs)
            flat = hidden_states.flatten(0, -2)
            return self(flat).view(hidden_states.shape)

        module.forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mixture, `(tokens, d_model)`."""
        if self.training and self.options.jitter:
            low, high = 1 - self.options.jitter, 1 + self.options.jitter
            inputs = inputs * torch.empty_like(inputs).uniform_(low, high)
        logits = F.linear(inputs.float(), self.router)
        probabilities = logits.softmax(-1)
        routes = self._routes(probabilities)
        if self.training:
            self.routed = (probabilities, routes.choices)
            self.load += torch.tensor(routes.counts, device=self.load.device)
        way = self._efficient if self.block.shares_projections else self._plain
        outputs = way(inputs, routes)
        summed = torch.zeros(inputs.shape, device=inputs.device)
        summed = summed.index_add(0, routes.tokens, outputs * routes.weights[:, None])
        return summed.to(inputs.dtype)

    def _routes(self, probabilities: Tensor) -> Routes:
        options = self.options
        if options.routing == "top_k":
            return top_k_routes(probabilities, options.top_k)
        return top_p_routes(probabilities, options.threshold, renormalise=options.renormalise)

    def _efficient(self, inputs: Tensor, routes: Routes) -> Tensor:
        network = self.network
        rows = inputs[routes.tokens]  # (pairs, d_model)
        projected = {
            role: network.projection(role)(inputs)[routes.tokens].float()
            + self._changes(role, rows, routes.counts)
            for role in network.sites
            if role != "down"
        }
        inner = network.inner(projected).to(inputs.dtype)  # (pairs, d_inner)
        base: Tensor = network.projection("down")(inner)
        return base.float() + self._changes("down", inner, routes.counts)

    def _plain(self, inputs: Tensor, routes: Routes) -> Tensor:
        """Compute every expert as a network of its own; for comparison."""
        network = self.network
        outputs = []
        for expert, tokens in enumerate(routes.tokens.split(routes.counts)):
            rows = inputs[tokens]
            projected = {
                role: network.projection(role)(rows).float() + self._change(role, rows, expert)
                for role in network.sites
                if role != "down"
            }
            inner = network.inner(projected).to(inputs.dtype)
            base = network.projection("down")(inner).float()
            outputs.append(base + self._change("down", inner, expert))
        return torch.cat(outputs)

    def _changes(self, role: str, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Return each expert's change on its own rows, `(pairs, out)` float32."""
        pieces = rows.split(list(counts))
        return torch.cat([self._change(role, piece, i) for i, piece in enumerate(pieces)])

    def _change(self, role: str, rows: Tensor, expert: int) -> Tensor:
        options = self.options
        dropped = F.dropout(rows.float(), options.dropout, self.training)
        low = F.linear(dropped, self.lora_A[role][expert])
        return F.linear(low, self.lora_B[role][expert]) * (options.alpha / options.rank)


def _inner(model: nn.Module) -> nn.Module:
    inner: Any = unwrapped(model)[0]
    base: nn.Module = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return base

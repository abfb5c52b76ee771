"""Check 9 of the card on EfficientFT: a fused projection trains as separate ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from deltatune import sites as places
from deltatune.bridges.in_place import merged_state, prepare_in_place
from deltatune.bridges.names import trained_parameters
from deltatune.sites import Sites, join
from deltatune.updates.groups import plan_groups
from deltatune.updates.ratios import Ratios
from tests.models import tiny
from tests.test_card_efficientft import rows_of


class SeparateAttentionInput(nn.Module):
    """A fused projection `[q | k | v]` per head as three separate ones: an independent way to it.

    GPT-2's layout is that of a single head as wide as the model.
    """

    def __init__(self, weight: Tensor, bias: Tensor, heads: int) -> None:
        super().__init__()
        self.heads = heads
        out_features = weight.shape[0] // 3
        weights = weight.unflatten(0, (heads, 3, -1)).unbind(1)
        biases = bias.unflatten(0, (heads, 3, -1)).unbind(1)
        for name, own_weight, own_bias in zip("qkv", weights, biases, strict=True):
            linear = nn.Linear(weight.shape[1], out_features, dtype=weight.dtype)
            linear.weight.data.copy_(own_weight.flatten(0, 1))
            linear.bias.data.copy_(own_bias.flatten(0, 1))
            setattr(self, name, linear)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return `(batch, seq, 3 * width)` in the fused order."""
        return self.fused([layer(hidden_states) for layer in (self.q, self.k, self.v)])

    def fused(self, three: list[Tensor]) -> Tensor:
        """Put three tensors, `(..., width)`, together in the fused order."""
        per_head = [tensor.unflatten(-1, (self.heads, -1)) for tensor in three]
        return torch.stack(per_head, dim=-2).flatten(-3)

    def fused_weight(self) -> Tensor:
        """Return the fused weight, `(out, in)`."""
        return self.fused([self.q.weight.T, self.k.weight.T, self.v.weight.T]).T

    def fused_bias(self) -> Tensor:
        """Return the fused bias, `(out,)`."""
        return self.fused([self.q.bias, self.k.bias, self.v.bias])


def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.arange(3, 27).reshape(2, 12)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()


def causal_model(name: str) -> Any:
    if name == "gpt2":
        return tiny("gpt2", "causal_lm").double()
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).double().eval()


def train_fused(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], Sites]:
    """Train query and value in place with our groups; return the state before and after."""
    model = causal_model(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    sites = places.of(model)
    prepare_in_place(model, sites, join(sites, sites.with_roles("query", "value")))
    groups = plan_groups(
        trained_parameters(model, sites),
        Ratios(roles={"value": 4.0}),
        sites,
        learning_rate=1e-3,
        weight_decay=0.1,
    )
    by_name = dict(model.named_parameters())
    chosen = [
        {"params": [by_name[n] for n in group.names], "lr": group.learning_rate} for group in groups
    ]
    steps(model, torch.optim.AdamW(chosen, weight_decay=0.1))
    return before, merged_state(model), sites


def train_separate(name: str) -> list[SeparateAttentionInput]:
    """Train the same model with separate projections by plain PyTorch."""
    model = causal_model(name)
    model.requires_grad_(False)
    projections = []
    if name == "gpt2":
        for block in model.transformer.h:
            fused = block.attn.c_attn
            block.attn.c_attn = SeparateAttentionInput(fused.weight.T, fused.bias, 1)
            projections.append(block.attn.c_attn)
    else:
        for block in model.gpt_neox.layers:
            fused = block.attention.query_key_value
            block.attention.query_key_value = SeparateAttentionInput(fused.weight, fused.bias, 4)
            projections.append(block.attention.query_key_value)
    for projection in projections:
        projection.k.requires_grad_(False)
    queries = [p for projection in projections for p in projection.q.parameters()]
    values = [p for projection in projections for p in projection.v.parameters()]
    rates = [{"params": queries, "lr": 1e-3}, {"params": values, "lr": 4e-3}]
    steps(model, torch.optim.AdamW(rates, weight_decay=0.1))
    return projections


@pytest.mark.parametrize(
    ("name", "tolerance"),
    # The card asks for 1e-6 in float64. Sums run in another order; NeoX computes its softmax and
    # rotary tables in float32 whatever the model's dtype (the card measured 1e-7).
    [("gpt2", 1e-12), ("gpt_neox", 1e-6)],
)
def test_fused_weight_trains_as_separate_ones_do(name: str, tolerance: float) -> None:
    before, after, sites = train_fused(name)
    for query, projection in zip(sites.with_roles("query"), train_separate(name), strict=True):
        weight = after[query.weight].T if query.transposed else after[query.weight]
        torch.testing.assert_close(weight, projection.fused_weight(), rtol=0, atol=tolerance)
        assert query.bias is not None
        torch.testing.assert_close(
            after[query.bias], projection.fused_bias(), rtol=0, atol=tolerance
        )
    for site in sites.with_roles("query", "key", "value"):
        same = torch.equal(rows_of(site, site.weight, before), rows_of(site, site.weight, after))
        assert same == (site.role == "key"), site.name

"""Checks 1, 2, 8, 9 and the guard of 11 of the card on EfficientFT, with its numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    GPTNeoXConfig,
    Trainer,
    TrainerCallback,
)

from deltatune import sites as places
from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.in_place import merged_state, prepare_in_place
from deltatune.bridges.names import trained_parameters
from deltatune.bridges.optimizer import attach_optimizer
from deltatune.bridges.trainer import with_objective
from deltatune.errors import Diverged
from deltatune.objectives.sequence_classification import SequenceClassification
from deltatune.part import Rows
from deltatune.sites import Sites, join
from deltatune.updates.groups import plan_groups
from deltatune.updates.ratios import Ratios
from tests.models import tiny
from tests.training import (
    PEFT_ASKS_OLD_NAME,
    arguments,
    collate,
    lora_llama,
    token_rows,
    trainer_of,
)

pytestmark = PEFT_ASKS_OLD_NAME
ROWS = token_rows(10)


def in_place(name: str, *roles: str, **overrides: Any) -> tuple[Any, Sites]:
    model = tiny(name, "causal_lm", **overrides)
    sites = places.of(model)
    return prepare_in_place(model, sites, join(sites, sites.with_roles(*roles))), sites


# Check 1: limits.


def test_ratio_one_over_lora_equals_the_host_bit_for_bit(tmp_path: Path) -> None:
    model, sites = lora_llama(dropout=0.1)
    update = Ratios(roles={"value": 1.0})
    trainer_of(model, sites, tmp_path, rows=ROWS, update=update, weight_decay=0.01).train()
    host, _ = lora_llama(dropout=0.1)
    Trainer(
        host,
        arguments(tmp_path, weight_decay=0.01, optim="adamw_torch"),
        train_dataset=ROWS,
        data_collator=collate,
        compute_loss_func=_mean_of_tokens,
    ).train()
    for (name, ours), theirs in zip(model.named_parameters(), host.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def _mean_of_tokens(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    shifted = labels[:, 1:]
    kept = shifted != -100
    rows = outputs.logits[:, :-1][kept]
    summed = F.cross_entropy(rows.float(), shifted[kept], reduction="sum")
    return summed / kept.sum()


def test_ratio_one_over_all_three_equals_plain_training_of_the_three(tmp_path: Path) -> None:
    model, sites = in_place("llama", "query", "key", "value")
    update = Ratios(roles={"value": 1.0})
    trainer_of(model, sites, tmp_path, rows=ROWS, update=update).train()
    plain = tiny("llama", "causal_lm")
    plain.requires_grad_(False)
    for layer in plain.model.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.requires_grad_(True)
    Trainer(
        plain,
        arguments(tmp_path, optim="adamw_torch"),
        train_dataset=ROWS,
        data_collator=collate,
        compute_loss_func=_mean_of_tokens,
    ).train()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


# Check 2: groups.


class WatchGroups(TrainerCallback):
    def __init__(self) -> None:
        self.ratios: list[float] = []
        self.labels: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = {group["label"]: group["lr"] for group in kwargs["optimizer"].param_groups}
        self.labels = list(groups)
        if groups["query"] > 0:
            self.ratios.append(groups["value"] / groups["query"])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_groups_keep_their_ratio_and_the_key_stays_bitwise(name: str, tmp_path: Path) -> None:
    model, sites = in_place(name, "query", "value")
    before = {n: t.clone() for n, t in merged_state(model).items()}
    watch = WatchGroups()
    trainer = trainer_of(
        model,
        sites,
        tmp_path,
        rows=ROWS,
        update=Ratios(roles={"value": 4.0}),
        weight_decay=0.1,
        callbacks=[watch],
        warmup_steps=2,
        max_steps=5,
    )
    trainer.train()
    assert watch.ratios == pytest.approx([4.0] * 4, rel=1e-12)  # the last rate of all is 0
    assert watch.labels == ["query", "value"]
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, held)) == sorted(map(id, trained))
    after = merged_state(model)
    for site in sites.with_roles("query", "key", "value"):
        for parameter in filter(None, (site.weight, site.bias)):
            old, new = (_rows(site, parameter, state) for state in (before, after))
            assert torch.equal(old, new) == (site.role == "key"), (site.name, parameter)


def _rows(site: Any, parameter: str, state: dict[str, Tensor]) -> Tensor:
    if not isinstance(site.part, Rows):
        return state[parameter]
    axis = 1 if site.transposed and parameter == site.weight else 0
    return state[parameter].index_select(axis, site.part.indices)


# Check 8: Adam and the scale of gradients.


def test_adam_does_not_see_the_scale_of_a_gradient() -> None:
    small, large = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    small.grad, large.grad = torch.tensor(1.0), torch.tensor(4.0)
    torch.optim.Adam([small, large], lr=0.1).step()
    # eps = 1e-8 against gradients of 1 and 4.
    assert [small.item(), large.item()] == pytest.approx([-0.1, -0.1], rel=1e-6)


def test_scaled_gradients_on_value_rows_leave_the_trajectory_unchanged() -> None:
    def trajectory(scale: float) -> Tensor:
        weight = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2))
        optimizer = torch.optim.Adam([weight], lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            (weight.sin() + 2).square().sum().backward()
            assert weight.grad is not None
            weight.grad[4:] *= scale
            optimizer.step()
        return weight.detach()

    # To the effect of eps: 1e-8 over gradients of order 1, times a step of 1e-2.
    torch.testing.assert_close(trajectory(4.0), trajectory(1.0), rtol=0, atol=1e-9)


def test_zeroed_gradients_do_not_freeze_rows_under_adamw() -> None:
    weight = nn.Parameter(torch.ones(6, 2, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        weight.square().sum().backward()
        assert weight.grad is not None
        weight.grad[2:4] = 0.0
        optimizer.step()
    shrunk = 1 - weight[2:4].detach()
    assert shrunk.flatten().tolist() == pytest.approx([1 - (1 - 0.001) ** 3] * 4, rel=1e-12)
    assert shrunk[0, 0].item() == pytest.approx(0.002997, abs=1e-6)


# Check 9: fused equals separate.


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
        same = torch.equal(_rows(site, site.weight, before), _rows(site, site.weight, after))
        assert same == (site.role == "key"), site.name


# Check 11, the guard: collapses are constants, not infinities.


def residue_rows(number: int, seed: int) -> list[dict[str, Tensor]]:
    """Return sequences [1, then 11 tokens of 4..19] labelled by their commonest residue mod 4."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 20, (number, 11), generator=generator)
    counts = F.one_hot(tokens % 4, 4).sum(dim=1)  # (number, 4)
    # Ties go to the larger residue.
    labels = (counts * 4 + torch.arange(4)).argmax(dim=1)
    first = torch.ones(number, 1, dtype=torch.int64)
    ids = torch.cat([first, tokens], dim=1)
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


def classify(folder: Path, learning_rate: float) -> Any:
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        num_labels=4,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    sites = places.of(model)
    prepare_in_place(model, sites, join(sites, sites.with_roles("query", "value")))
    model.classifier.requires_grad_(True)
    trainer: Any = with_objective(Trainer)(
        model=model,
        args=arguments(
            folder, per_device_train_batch_size=32, max_steps=100, lr_scheduler_type="constant"
        ),
        train_dataset=residue_rows(3200, 0),
        data_collator=lambda rows: {k: torch.stack([r[k] for r in rows]) for k in rows[0]},
        objective=SequenceClassification(),
    )
    update = Ratios(roles={"value": 8.0})
    attach_optimizer(trainer, update=update, sites=sites, learning_rate=learning_rate)
    trainer.add_callback(
        DeltaCallback(trainer, update=update, sites=sites, constant_loss=math.log(4))
    )
    return trainer


def test_guard_fires_when_the_run_falls_to_a_constant(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"above the 1\.3863 of a constant prediction"):
        classify(tmp_path, learning_rate=0.3).train()


def test_guard_is_silent_when_the_run_learns(tmp_path: Path) -> None:
    trainer = classify(tmp_path, learning_rate=1e-3)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-20:]) / 20 < math.log(4)

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltatune import sites as places
from deltatune.bridges.in_place import merged_state, prepare_in_place, restore
from deltatune.errors import NotComposable
from deltatune.part import Columns, Rows, Whole
from deltatune.sites import Sites, join
from tests.models import tiny

IDS = torch.arange(3, 15).reshape(2, 6)


def prepared(name: str, *roles: str, **overrides: Any) -> tuple[Any, Sites, dict[str, Tensor]]:
    """Return the prepared model, its sites, and its state before."""
    model = tiny(name, "causal_lm", **overrides)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    sites = places.of(model)
    chosen = sites.with_roles(*(roles or ("query", "value")))
    return prepare_in_place(model, sites, join(sites, chosen)), sites, before


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def train(model: nn.Module, steps: int = 3) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "bert"])
def test_preparing_changes_no_value(name: str) -> None:
    plain = tiny(name, "causal_lm")
    model, _, before = prepared(name)
    assert torch.equal(logits(model), logits(plain))
    state = merged_state(model)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[n], before[n]) for n in before)


def test_unfused_weights_train_as_they_are() -> None:
    model, _, _ = prepared("llama")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"model.layers.{layer}.self_attn.{projection}.weight"
        for layer in (0, 1)
        for projection in ("q_proj", "v_proj")
    }


@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_rows_of_a_frozen_role_stay_bitwise_and_the_others_move(name: str) -> None:
    model, sites, before = prepared(name)
    train(model)
    after = merged_state(model)
    for site in sites.with_roles("query", "key", "value"):
        assert isinstance(site.part, Rows)
        axis = 1 if site.transposed else 0
        old = before[site.weight].index_select(axis, site.part.indices)
        new = after[site.weight].index_select(axis, site.part.indices)
        assert torch.equal(old, new) == (site.role == "key"), site.name
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    fused = {site.weight for site in sites.with_roles("query")}
    biases = {site.bias for site in sites.with_roles("query") if site.bias}
    assert moved == fused | biases


def test_bias_of_a_selected_place_trains_with_its_rows() -> None:
    model, sites, before = prepared("gpt2")
    train(model)
    after = merged_state(model)
    for site in sites.with_roles("query", "key", "value"):
        assert site.bias is not None
        assert isinstance(site.part, Rows)
        rows = site.part.indices
        same = torch.equal(before[site.bias][rows], after[site.bias][rows])
        assert same == (site.role == "key"), site.name


def test_all_roles_of_a_fused_weight_are_separate_parameters() -> None:
    model, _, _ = prepared("gpt2", "query", "key", "value")
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "weight" in n]
    assert [n.rpartition(".")[2] for n in trained] == ["original0", "original1", "original2"] * 2


def test_single_rows_train_where_only_they_are_selected() -> None:
    model = tiny("llama", "causal_lm")
    sites = places.of(model)
    weight = "model.layers.0.self_attn.q_proj.weight"
    before = model.state_dict()[weight].clone()
    prepare_in_place(model, sites, {weight: Rows(torch.tensor([5, 0]))})
    train(model)
    changed = (merged_state(model)[weight] != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [0, 5]


def test_restored_model_is_plain_and_keeps_what_was_trained() -> None:
    model, _, before = prepared("gpt2")
    train(model)
    trained, outputs = merged_state(model), logits(model)
    restored = restore(model)
    assert list(restored.state_dict()) == list(before)
    assert all(torch.equal(t, trained[n]) for n, t in restored.state_dict().items())
    assert torch.equal(logits(restored), outputs)
    assert not any(p.requires_grad for n, p in restored.named_parameters() if "c_attn" in n)
    assert type(restored.transformer.h[0].attn.c_attn).__name__ == "Conv1D"


def test_restored_model_saves_and_loads_as_a_plain_one(tmp_path: Any) -> None:
    model, _, _ = prepared("gpt2")
    train(model)
    outputs = logits(model)
    restore(model).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), outputs)


def test_columns_are_refused_by_name() -> None:
    model = tiny("llama", "causal_lm")
    weight = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(NotComposable, match=rf"columns of {weight}: use a delta"):
        prepare_in_place(model, places.of(model), {weight: Columns(torch.tensor([0]))})


def test_whole_fused_weight_is_cut_by_role() -> None:
    model = tiny("phi3", "causal_lm")
    sites = places.of(model)
    weight = sites.with_roles("query")[0].weight
    prepare_in_place(model, sites, {weight: Whole()})
    assert sum(p.requires_grad for p in model.parameters()) == 3

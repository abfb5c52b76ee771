from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deltatune import sites as places
from deltatune.bridges.in_place import prepare_in_place
from deltatune.bridges.names import canonical_name, trained_parameters
from deltatune.bridges.peft_config import delta_config
from deltatune.deltas.low_rank import LowRank
from deltatune.deltas.sum import Sum
from deltatune.sites import join
from tests.models import tiny
from tests.training import PEFT_ASKS_OLD_NAME

pytestmark = PEFT_ASKS_OLD_NAME


def described(model: nn.Module, sites: Any) -> dict[str, tuple[str, str, str, int | None]]:
    """Return name -> canonical name, role, part role, layer."""
    return {
        parameter.name: (
            parameter.canonical,
            parameter.role,
            parameter.part_role,
            parameter.layer,
        )
        for parameter in trained_parameters(model, sites)
    }


def llama_with(config: peft.PeftConfig, task: str = "causal_lm") -> tuple[Any, Any]:
    base = tiny("llama", task)
    sites = places.of(base)
    return peft.get_peft_model(base, config), sites


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("module.score.bias", "score.bias"),
        ("module._orig_mod.score.bias", "score.bias"),
        ("base_model.model.a.q.lora_A.default.weight", "a.q"),
        ("base_model.model.a.q.lora_magnitude_vector.default.weight", "a.q"),
        ("base_model.model.a.q.base_layer.weight", "a.q.weight"),
        ("base_model.model.a.q.ia3_l.default", "a.q"),
        ("base_model.model.a.q.delta_.default.value.up", "a.q"),
        ("base_model.model.score.modules_to_save.default.weight", "score.weight"),
        ("base_model.model.score.original_module.weight", "score.weight"),
        ("model.lora_like.weight", "model.lora_like.weight"),
    ],
)
def test_canonical_name_leaves_out_what_wrappers_and_adapters_add(
    name: str, canonical: str
) -> None:
    assert canonical_name(name) == canonical


def test_canonical_name_agrees_with_the_module_graph() -> None:
    model, sites = llama_with(
        peft.LoraConfig(target_modules=["q_proj"], use_dora=True, task_type="SEQ_CLS"),
        "sequence_classification",
    )
    for parameter in trained_parameters(model, sites):
        assert canonical_name(parameter.name) == parameter.canonical


def test_roles_of_lora_and_dora_come_from_the_place() -> None:
    model, sites = llama_with(peft.LoraConfig(target_modules=["q_proj", "v_proj"], use_dora=True))
    prefix = "base_model.model.model.layers.1.self_attn.v_proj"
    canonical = "model.layers.1.self_attn.v_proj"
    found = described(model, sites)
    assert found[f"{prefix}.lora_A.default.weight"] == (canonical, "value", "down", 1)
    assert found[f"{prefix}.lora_B.default.weight"] == (canonical, "value", "up", 1)
    assert found[f"{prefix}.lora_magnitude_vector.default.weight"] == (
        canonical,
        "value",
        "magnitude",
        1,
    )
    assert len(found) == 12  # 2 layers, 2 projections, 3 tensors


def test_saved_head_is_named_after_its_module_and_its_frozen_copy_is_not_listed() -> None:
    model, sites = llama_with(
        peft.LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"), "sequence_classification"
    )
    heads = {n: d for n, d in described(model, sites).items() if "score" in n}
    assert heads == {
        "base_model.model.score.modules_to_save.default.weight": (
            "score.weight",
            "head",
            "weight",
            None,
        )
    }


def test_saved_module_tree_gives_each_parameter_its_own_place() -> None:
    base = tiny("bert", "sequence_classification")
    sites = places.of(base)
    model = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["query"], modules_to_save=["pooler"])
    )
    saved = [d for n, d in described(model, sites).items() if "modules_to_save" in n]
    assert [d[0] for d in saved] == ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
    assert [d[2] for d in saved] == ["weight", "bias"]


def test_roles_of_ia3() -> None:
    model, sites = llama_with(
        peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[])
    )
    roles = {(role, part) for _, role, part, _ in described(model, sites).values()}
    assert roles == {("key", "magnitude"), ("value", "magnitude")}


def test_one_adapter_over_a_fused_weight_has_no_single_role() -> None:
    base = tiny("gpt2", "causal_lm")
    sites = places.of(base)
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    found = described(peft.get_peft_model(base, config), sites)
    assert {(role, layer) for _, role, _, layer in found.values()} == {("other", 0), ("other", 1)}


def test_roles_of_a_plain_model_cover_weights_and_biases() -> None:
    model = tiny("bert", "sequence_classification")
    sites = places.of(model)
    found = described(model, sites)
    assert set(found) == {name for name, _ in model.named_parameters()}
    attention = "bert.encoder.layer.1.attention.self"
    assert found[f"{attention}.value.weight"] == (
        f"{attention}.value.weight",
        "value",
        "weight",
        1,
    )
    assert found[f"{attention}.key.bias"] == (f"{attention}.key.bias", "key", "bias", 1)
    assert found["classifier.bias"][1:] == ("head", "bias", None)


def test_pieces_of_a_fused_weight_trained_in_place_have_their_roles() -> None:
    model = tiny("gpt2", "causal_lm")
    sites = places.of(model)
    prepare_in_place(model, sites, join(sites, sites.with_roles("query", "value")))
    found = described(model, sites)
    attention = "transformer.h.0.attn.c_attn"
    assert found[f"{attention}.parametrizations.weight.original0"] == (
        f"{attention}.weight",
        "query",
        "weight",
        0,
    )
    assert found[f"{attention}.parametrizations.bias.original2"][1:3] == ("value", "bias")
    assert len(found) == 8  # 2 layers, 2 roles, weight and bias


def with_delta(delta: Any) -> tuple[Any, Any]:
    base = tiny("gpt2", "sequence_classification")
    sites = places.of(base)
    selected = join(sites, sites.with_roles("query", "value"))
    config = delta_config(
        delta, sites, selected, modules_to_save=("score",), seed=0, task_type="SEQ_CLS"
    )
    return peft.get_peft_model(base, config), sites


def test_deltas_of_ours_on_a_fused_weight_have_the_role_of_their_rows() -> None:
    found = described(*with_delta(LowRank(rank=2)))
    fused = {d[1:] for d in found.values() if d[0] == "transformer.h.1.attn.c_attn"}
    assert fused == {
        (role, part_role, 1) for role in ("query", "value") for part_role in ("down", "up")
    }
    assert len(found) == 2 * 2 * 2 + 1
    for name, description in found.items():
        assert canonical_name(name) == description[0]


def test_terms_of_a_sum_keep_their_own_part_roles() -> None:
    found = described(*with_delta(Sum.example()))
    part_roles = [d[2] for d in found.values() if d[1] == "value" and d[3] == 0]
    assert sorted(part_roles) == ["down", "down", "up", "up"]


def test_names_are_found_inside_wrappers() -> None:
    model, sites = llama_with(peft.LoraConfig(target_modules=["v_proj"]))
    plain = described(model, sites)
    compiled = torch.compile(model, backend="eager")
    assert described(compiled, sites) == {f"_orig_mod.{n}": d for n, d in plain.items()}
    assert set(described(compiled, sites)) <= {n for n, _ in compiled.named_parameters()}
    wrapped = nn.DataParallel(model)
    assert described(wrapped, sites) == {f"module.{n}": d for n, d in plain.items()}


def test_names_are_found_inside_ddp(tmp_path: Any) -> None:
    model, sites = llama_with(peft.LoraConfig(target_modules=["v_proj"]))
    plain = described(model, sites)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        assert described(wrapped, sites) == {f"module.{n}": d for n, d in plain.items()}
    finally:
        torch.distributed.destroy_process_group()


def test_a_module_that_is_only_named_like_a_role_is_other() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Linear(2, 2)
            self.query_head = nn.Parameter(torch.zeros(1))

    model = tiny("bert", "sequence_classification")
    sites = places.of(model)
    model.requires_grad_(False)
    model.counter = Counter()
    assert {role for _, role, _, _ in described(model, sites).values()} == {"other"}

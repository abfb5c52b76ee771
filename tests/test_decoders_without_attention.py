"""Models without a plain query, key and value: refused with the map that a user could give."""

from __future__ import annotations

import re

import pytest
import torch

from deltatune import sites
from deltatune.bridges.in_place import merged_state
from deltatune.coverage import gate
from deltatune.errors import InputError
from deltatune.part import Rows
from deltatune.recipe import named
from deltatune.role_maps import shared
from deltatune.role_probe import check_given_roles, check_roles, probe_roles
from deltatune.selections.by_role import ByRole
from tests.decoder_models import decoder
from tests.models import tiny

# What each refusal has to offer: from the published descriptions of these blocks.
MAPS = {
    "deepseek_v2": {"q_b_proj": "query", "kv_b_proj": "latent_key_value"},
    "deepseek_v2_lite": {"q_proj": "query", "kv_b_proj": "latent_key_value"},
    "deepseek_v3": {"q_b_proj": "query", "kv_b_proj": "latent_key_value"},
    "minicpm3": {"q_b_proj": "query", "kv_b_proj": "latent_key_value"},
    "mamba": {"in_proj": "state_space_input", "x_proj": "state_space_step"},
    "falcon_mamba": {"in_proj": "state_space_input", "x_proj": "state_space_step"},
    "mamba2": {"in_proj": "state_space_duality"},
    "rwkv": {"receptance": "query", "key": "key", "value": "value"},
}
# Of two layers, the first mixes tokens by other means; or, in Falcon-H1, each does both.
HYBRIDS = {
    "qwen3_next": ([0], {"in_proj_qkvz": "linear_query_key_value_gate"}),
    "qwen3_5_text": ([0], {"in_proj_qkv": "linear_query_key_value"}),
    "minimax": ([0], {"qkv_proj": "query_key_value_of_each_head"}),
    "jamba": ([0], {"in_proj": "state_space_input", "x_proj": "state_space_step"}),
    "bamba": ([0], {"in_proj": "state_space_duality"}),
    "falcon_h1": ([0, 1], {"in_proj": "state_space_duality"}),
}


def offered(message: str) -> dict[str, str]:
    """Read the map out of a refusal, as a user would copy it."""
    (setting,) = re.findall(r'--set "roles=\{(.*?)\}"', message)
    return dict(pair.split(": ") for pair in setting.split(", "))


def last_names(roles: dict[str, str]) -> dict[str, str]:
    return {pattern.rpartition(".")[2]: role for pattern, role in roles.items()}


@pytest.mark.parametrize("name", sorted(MAPS))
@pytest.mark.parametrize("role", ["query", "key", "value"])
def test_role_that_a_model_has_only_by_likeness_is_refused_with_its_map(
    name: str, role: str
) -> None:
    model = decoder(name)
    with pytest.raises(InputError, match=f"has no plain {role}") as refused:
        sites.of(model).with_roles(role)
    assert "\n" not in str(refused.value)
    given = offered(str(refused.value))
    assert last_names(given) == MAPS[name]
    assert len(sites.of(model, roles=given).with_roles(role)) == 2


@pytest.mark.parametrize("name", sorted(HYBRIDS))
def test_gate_names_the_layers_of_a_hybrid_that_are_no_attention(name: str) -> None:
    model = decoder(name)
    found = sites.of(model)
    selector = ByRole()
    layers, wanted = HYBRIDS[name]
    with pytest.raises(InputError, match="query and value are matched, but layers") as stopped:
        gate(found, selector(model, found), selector)
    assert f"layers {layers} also mix tokens by other means" in str(stopped.value)
    given = offered(str(stopped.value))
    assert last_names(given) == wanted
    mapped = sites.of(model, roles=given)
    assert gate(mapped, selector(model, mapped), selector).partial == ()
    assert len(mapped.with_roles("value")) == (4 if name == "falcon_h1" else 2)


def test_gate_lets_a_hybrid_pass_that_is_limited_to_its_attention() -> None:
    model = decoder("qwen3_next")
    found = sites.of(model)
    for selector in (ByRole(layers=(1,)), ByRole(allow_partial=True)):
        assert gate(found, selector(model, found), selector).matched == 2
    feed_forward = ByRole(roles=("gate", "up", "down"))
    assert gate(found, feed_forward(model, found), feed_forward).partial == ()


def test_layouts_of_stand_ins_have_the_rows_of_the_published_blocks() -> None:
    def ranges(name: str, weight: str) -> dict[str, Rows]:
        model = decoder(name)
        found = sites.of(model, roles=shared(sites.of(model).stand_ins))
        return {site.role: site.part for site in found.at_weight(weight)}

    # Latent attention: 4 heads of [key 8 | value 8].
    latent = ranges("deepseek_v3", "layers.0.self_attn.kv_b_proj.weight")
    assert latent["value"] == Rows.of_ranges([(8, 16), (24, 32), (40, 48), (56, 64)])
    # Mamba of width 64: [input | gate], and a step of 2 before 4 states of B and of C.
    assert ranges("mamba", "layers.0.mixer.in_proj.weight")["value"] == Rows.of_ranges([(0, 64)])
    step = ranges("mamba", "layers.0.mixer.x_proj.weight")
    assert (step["key"], step["query"]) == (Rows.of_ranges([(2, 6)]), Rows.of_ranges([(6, 10)]))
    # Mamba 2: [gate 64 | input 64 | B 2 x 4 | C 2 x 4 | step 8].
    fused = ranges("mamba2", "layers.0.mixer.in_proj.weight")
    assert fused["value"] == Rows.of_ranges([(64, 128)])
    assert fused["key"] == Rows.of_ranges([(128, 136)])
    assert fused["query"] == Rows.of_ranges([(136, 144)])
    assert fused["other"] == Rows.of_ranges([(0, 64), (144, 152)])
    # Qwen3-Next: 2 key heads, each [query 8 | key 8 | 2 values of 4 | their 2 gates of 4].
    linear = ranges("qwen3_next", "layers.0.linear_attn.in_proj_qkvz.weight")
    assert linear["key"] == Rows.of_ranges([(8, 16), (40, 48)])
    assert linear["value"] == Rows.of_ranges([(16, 24), (48, 56)])


@pytest.mark.parametrize("name", ["deepseek_v2_lite", "deepseek_v3", "minicpm3"])
def test_rows_of_a_latent_key_and_value_do_what_the_map_says(name: str) -> None:
    model = decoder(name)
    check_roles(model, sites.of(model, roles=shared(sites.of(model).stand_ins)))


@pytest.mark.parametrize("name", ["deepseek_v3", "mamba", "mamba2", "rwkv", "qwen3_next"])
def test_map_of_roles_trains_queries_and_values_and_leaves_keys(name: str) -> None:
    # In evaluation RWKV writes over its state, which has no backward pass.
    model = decoder(name, causal=True).train()
    given = shared(sites.of(model).stand_ins)
    found = sites.of(model, roles=given)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    named("efficientft_full", {"roles": given}).prepare(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    ids = torch.arange(3, 19)[None]
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    after = merged_state(model)
    for site in found.with_roles("query", "key", "value"):
        rows = site.part.indices if isinstance(site.part, Rows) else slice(None)
        same = torch.equal(before[site.weight][rows], after[site.weight][rows])
        assert same == (site.role == "key"), site.name


def test_probe_finds_the_wrong_layout_of_a_map() -> None:
    # CodeGen's shards are [query | value | key]; a map that takes them for heads is wrong.
    model = decoder("codegen")
    given = {"attn.qkv_proj": "query_key_value_of_each_head"}
    message = r"row \d+ of h.0.attn.qkv_proj is named key, but acts as value: correct the map"
    with pytest.raises(InputError, match=message):
        check_roles(model, sites.of(model, roles=given))


def test_probe_tells_rows_apart_and_leaves_the_model_as_it_was() -> None:
    model = decoder("codegen").train()
    # Shards of 24 rows: the query, the value, the key of the first, the value of the second.
    roles = probe_roles(model, "h.1.attn.qkv_proj", [0, 9, 23, 33])
    assert roles == ["query", "value", "key", "value"]
    assert probe_roles(model, "h.1.mlp.fc_in", [3]) == ["other"]
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_probe_refuses_what_it_cannot_see() -> None:
    with pytest.raises(InputError, match="no linear layer inside a layer"):
        probe_roles(decoder("codegen"), "h.0.attn.q_proj", [0])
    with pytest.raises(InputError, match="no linear layer inside a layer"):
        probe_roles(decoder("xlnet"), "layer.0.rel_attn", [0])
    with pytest.raises(InputError, match="gives no attention probabilities of this layer"):
        probe_roles(decoder("qwen3_next"), "layers.0.linear_attn.in_proj_qkvz", [0])


def test_probe_leaves_every_module_in_its_own_mode() -> None:
    model = tiny("llama", "causal_lm").train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    probe_roles(model, "model.layers.0.self_attn.q_proj", [0])
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("given", "acts"),
    [
        ({"q_proj": "value", "v_proj": "query"}, "q_proj is named value, but acts as query"),
        ({"q_proj": "key", "k_proj": "query"}, "q_proj is named key, but acts as query"),
    ],
)
def test_wrong_map_of_roles_is_told_before_training(given: dict[str, str], acts: str) -> None:
    model = tiny("llama", "causal_lm")
    with pytest.raises(InputError, match=rf"row 0 of .*\.{acts}: correct the map of roles"):
        named("lora", {"roles": given}).prepare(model)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", sorted(MAPS))
def test_map_that_is_offered_passes_the_check_of_given_roles(name: str) -> None:
    model = decoder(name)
    given = shared(sites.of(model).stand_ins)
    check_given_roles(model, sites.of(model, roles=given), given)


@pytest.mark.parametrize("name", sorted(HYBRIDS))
def test_map_of_a_hybrid_passes_the_check_of_given_roles(name: str) -> None:
    model = decoder(name)
    given = shared(sites.of(model).stand_ins)
    check_given_roles(model, sites.of(model, roles=given), given)


def test_map_for_a_model_that_reads_no_tokens_is_taken_as_it_is() -> None:
    model = tiny("vit")
    given = {sites.of(model).with_roles("query")[0].module: "value"}
    check_given_roles(model, sites.of(model, roles=given), given)

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    ViTConfig,
)

from deltatune import sites
from deltatune.part import Rows

TRIPLE = ("query", "key", "value")


# The projections of one layer of each architecture: path below the layer -> role, written from the
# architectures' own papers and module listings, not from the table under test.
LAYER = {
    "llama": {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.o_proj": "output",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
        "input_layernorm": "norm",
        "post_attention_layernorm": "norm",
    },
    "gpt2": {
        "ln_1": "norm",
        "attn.c_attn:query": "query",
        "attn.c_attn:key": "key",
        "attn.c_attn:value": "value",
        "attn.c_proj": "output",
        "ln_2": "norm",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    },
    "phi3": {
        "self_attn.o_proj": "output",
        "self_attn.qkv_proj:query": "query",
        "self_attn.qkv_proj:key": "key",
        "self_attn.qkv_proj:value": "value",
        "mlp.gate_up_proj:gate": "gate",
        "mlp.gate_up_proj:up": "up",
        "mlp.down_proj": "down",
        "input_layernorm": "norm",
        "post_attention_layernorm": "norm",
    },
    "bert": {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "output",
        "attention.output.LayerNorm": "norm",
        "intermediate.dense": "up",
        "output.dense": "down",
        "output.LayerNorm": "norm",
    },
    "vit": {
        "attention.q_proj": "query",
        "attention.k_proj": "key",
        "attention.v_proj": "value",
        "attention.o_proj": "output",
        "layernorm_before": "norm",
        "layernorm_after": "norm",
        "mlp.fc1": "up",
        "mlp.fc2": "down",
    },
}
LAYER["qwen2"] = LAYER["llama"]
LAYER["qwen3"] = {**LAYER["llama"], "self_attn.q_norm": "norm", "self_attn.k_norm": "norm"}
LAYER["roberta"] = LAYER["bert"]
STACKS = {"gpt2": "h", "bert": "encoder.layer", "roberta": "encoder.layer"}


@pytest.mark.parametrize("architecture", sorted(LAYER))
def test_sites_give_every_module_of_a_layer_its_role(tiny, architecture) -> None:
    found = sites.of(tiny(architecture))
    for layer in (0, 1):
        prefix = f"{STACKS.get(architecture, 'layers')}.{layer}."
        in_layer = {name: site for name, site in found.items() if name.startswith(prefix)}
        roles = {name.removeprefix(prefix): site.role for name, site in in_layer.items()}
        assert roles == LAYER[architecture]
        assert {site.layer for site in in_layer.values()} == {layer}
    assert found.number_of_layers == 2
    assert found.is_known_architecture
    assert found.model_type == architecture


@pytest.mark.parametrize("gated", [False, True])
def test_sites_resolve_self_and_cross_attention_of_t5(tiny, gated) -> None:
    found = sites.of(tiny("t5", feed_forward_proj="gated-gelu" if gated else "relu"))
    roles = {name: site.role for name, site in found.items()}
    for block in ("encoder.block.1.layer.0.Self", "decoder.block.1.layer.0.Self",
                  "decoder.block.1.layer.1.EncDec"):  # fmt: skip
        assert [roles[f"{block}Attention.{name}"] for name in "qkvo"] == [*TRIPLE, "output"]
    dense = "decoder.block.0.layer.2.DenseReluDense"
    gate = {f"{dense}.wi_0": "gate", f"{dense}.wi_1": "up"} if gated else {f"{dense}.wi": "up"}
    expected = {**gate, f"{dense}.wo": "down"}
    assert {name: role for name, role in roles.items() if name.startswith(dense)} == expected
    assert roles["encoder.block.0.layer.0.SelfAttention.relative_attention_bias"] == "other"
    assert found["encoder.block.1.layer.0.SelfAttention.q"].layer == 1
    assert found["decoder.block.1.layer.2.DenseReluDense.wo"].layer == 3
    assert found.number_of_layers == 4


def test_sites_resolve_fused_cross_attention_of_gpt2(tiny) -> None:
    found = sites.of(tiny("gpt2", add_cross_attention=True))
    key, value = found.at_weight("h.0.crossattention.c_attn.weight")
    assert (key.role, key.part) == ("key", Rows.of_ranges([(0, 32)]))
    assert (value.role, value.part) == ("value", Rows.of_ranges([(32, 64)]))
    assert found["h.0.crossattention.q_attn"].role == "query"


def test_sites_resolve_cross_attention_of_bert(tiny) -> None:
    model = tiny("bert", "causal_lm", is_decoder=True, add_cross_attention=True)
    found = sites.of(model)
    assert found["bert.encoder.layer.1.crossattention.self.key"].role == "key"
    assert len(found.with_roles("output")) == 4


def model_like(other: PreTrainedModel, model_type: str, **overrides: Any) -> PreTrainedModel:
    """Build a tiny model of another type with the sizes of one that is there."""
    fields = {name: value for name, value in other.config.to_dict().items() if value is not None}
    for name in ("model_type", "architectures", "transformers_version", "rope_parameters"):
        fields.pop(name, None)
    config = AutoConfig.for_model(model_type, **{**fields, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(config).eval()


ALIKE = {
    "mistral": "llama",
    "gemma": "llama",
    "gemma2": "llama",
    "gemma3_text": "llama",
    "granite": "llama",
    "olmo2": "llama",
    "smollm3": "llama",
    "xlm-roberta": "bert",
    "camembert": "bert",
    "electra": "bert",
    "mt5": "t5",
}


def test_sites_interleave_the_heads_of_gpt_neox(tiny) -> None:
    found = sites.of(model_like(tiny("bert"), "gpt_neox"))  # 4 heads of 8
    value = found["layers.1.attention.query_key_value:value"]
    assert value.part == Rows.of_ranges([(16, 24), (40, 48), (64, 72), (88, 96)])
    assert value.out_features == 32


@pytest.mark.parametrize("model_type", sorted(ALIKE))
def test_sites_resolve_architectures_that_share_a_row(tiny, model_type) -> None:
    found = sites.of(model_like(tiny(ALIKE[model_type]), model_type))
    assert found.is_known_architecture
    attention_blocks = 6 if model_type == "mt5" else 2
    for role in (*TRIPLE, "output"):
        assert len(found.with_roles(role)) == attention_blocks
    assert len(found.with_roles("down")) == found.number_of_layers


class OldVit(PreTrainedModel):
    """Only the module names of a ViT layer in transformers 4."""

    config_class = ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        width, inner = config.hidden_size, config.intermediate_size
        attention = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        )
        layer = {
            "attention": nn.ModuleDict(
                {
                    "attention": attention,
                    "output": nn.ModuleDict({"dense": nn.Linear(width, width)}),
                }
            ),
            "intermediate": nn.ModuleDict({"dense": nn.Linear(width, inner)}),
            "output": nn.ModuleDict({"dense": nn.Linear(inner, width)}),
        }
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict(layer)])})


def test_sites_resolve_vit_of_the_old_names() -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12
    )
    roles = {name: site.role for name, site in sites.of(OldVit(config)).items()}
    assert roles == {
        "encoder.layer.0.attention.attention.query": "query",
        "encoder.layer.0.attention.attention.key": "key",
        "encoder.layer.0.attention.attention.value": "value",
        "encoder.layer.0.attention.output.dense": "output",
        "encoder.layer.0.intermediate.dense": "up",
        "encoder.layer.0.output.dense": "down",
    }


def inputs_of(architecture: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if architecture == "vit":
        return {"pixel_values": torch.randn(1, 3, 16, 16, generator=generator)}
    tokens = torch.randint(3, 64, (1, 5), generator=generator)
    return {"input_ids": tokens}


@torch.no_grad()
def probed_role(model: nn.Module, inputs: dict, module: nn.Module, row: int, token: int) -> str:
    """Tell from behaviour alone what an output row of a projection of the first layer is.

    A change of a value leaves every attention probability as it was; a change of one token's query
    moves the probabilities of that query only; a change of its key moves those of others too.
    """

    def add(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, token, row] += 0.5
        return changed

    before = model(**inputs, output_attentions=True)
    with module.register_forward_hook(add):
        after = model(**inputs, output_attentions=True)
    # (batch, n_heads, query token, key token) -> which query tokens were moved
    moved = (before.attentions[0] != after.attentions[0]).any(-1).any(1)[0]
    if not moved.any():
        assert not torch.equal(before.last_hidden_state, after.last_hidden_state)
        return "value"
    return "query" if moved.nonzero().flatten().tolist() == [token] else "key"


# Neither has a fixture of its own: heads interleaved in one weight, and names of yet another kind.
OTHERS = ("gpt_neox", "distilbert")


@pytest.mark.parametrize(
    "architecture",
    ["gpt2", "phi3", "llama", "qwen2", "qwen3", "bert", "roberta", "vit", "t5", *OTHERS],
)
def test_sites_agree_with_what_each_row_does(tiny, architecture) -> None:
    # Five times the usual weights, for at 0.02 a change of one row of a key can vanish in float32;
    # T5, which does not scale its scores, starts large enough.
    size = {} if architecture == "t5" else {"initializer_range": 0.1}
    if architecture in OTHERS:
        model = model_like(tiny("bert"), architecture, attn_implementation="eager", **size)
    else:
        model = tiny(architecture, attention="eager", **size)
    model = model.encoder if architecture == "t5" else model
    found = sites.of(model)
    checked = Counter()
    for site in found.with_roles(*TRIPLE):
        if site.layer != 0:
            continue
        rows = site.part.indices if isinstance(site.part, Rows) else torch.arange(site.out_features)
        module = model.get_submodule(site.module)
        for row in (int(rows[0]), int(rows[len(rows) // 2]), int(rows[-1])):
            assert probed_role(model, inputs_of(architecture), module, row, 2) == site.role
            checked[site.role] += 1
    assert checked == dict.fromkeys(TRIPLE, 3)

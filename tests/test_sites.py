from __future__ import annotations

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTModel,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
)

from deltatune import sites
from deltatune.errors import InputError
from deltatune.part import Rows, Whole
from deltatune.sites import Sites

TRIPLE = ("query", "key", "value")


def scalars(found: Sites, role: str) -> int:
    """Weights and biases of one role."""
    return sum(
        site.out_features * (site.in_features + (site.bias is not None))
        for site in found.with_roles(role)
    )


def on_meta(model_class: type[PreTrainedModel], config: object) -> PreTrainedModel:
    with torch.device("meta"):
        return model_class(config)


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


def test_sites_split_gpt2_attention_into_thirds(tiny) -> None:
    found = sites.of(tiny("gpt2", "causal_lm"))
    value = found["transformer.h.1.attn.c_attn:value"]
    assert value.part == Rows.of_ranges([(64, 96)])
    assert (value.out_features, value.in_features, value.transposed) == (32, 32, True)
    assert value.module == "transformer.h.1.attn.c_attn"
    assert (value.weight, value.bias) == (f"{value.module}.weight", f"{value.module}.bias")
    down = found["transformer.h.1.mlp.c_proj"]
    assert (down.out_features, down.in_features, down.part) == (32, 48, Whole())


def test_sites_give_grouped_heads_of_phi3_their_true_rows(tiny) -> None:
    found = sites.of(tiny("phi3"))  # 4 query heads and 2 key-value heads of 8
    rows = {site.role: site.part for site in found.at_weight("layers.0.self_attn.qkv_proj.weight")}
    assert rows["query"] == Rows.of_ranges([(0, 32)])
    assert rows["key"] == Rows.of_ranges([(32, 48)])
    assert rows["value"] == Rows.of_ranges([(48, 64)])
    gate, up = found.at_weight("layers.0.mlp.gate_up_proj.weight")
    assert (gate.part, up.part) == (Rows.of_ranges([(0, 48)]), Rows.of_ranges([(48, 96)]))


ALIKE = {
    "mistral": "llama",
    "xlm-roberta": "bert",
    "camembert": "bert",
    "electra": "bert",
    "mt5": "t5",
}


@pytest.mark.parametrize("model_type", sorted(ALIKE))
def test_sites_resolve_architectures_that_share_a_row(tiny, model_type) -> None:
    like = tiny(ALIKE[model_type])
    fields = {name: value for name, value in like.config.to_dict().items() if value is not None}
    for name in ("model_type", "architectures", "transformers_version", "rope_parameters"):
        fields.pop(name, None)
    found = sites.of(AutoModel.from_config(AutoConfig.for_model(model_type, **fields)))
    assert found.is_known_architecture
    attention_blocks = 6 if model_type == "mt5" else 2
    for role in (*TRIPLE, "output"):
        assert len(found.with_roles(role)) == attention_blocks
    assert len(found.with_roles("down")) == found.number_of_layers


def test_sites_find_embeddings_heads_and_the_rest(tiny) -> None:
    def roles(architecture: str, task: str) -> dict[str, str]:
        found = sites.of(tiny(architecture, task))
        return {name: site.role for name, site in found.items() if site.layer is None}

    assert roles("llama", "causal_lm") == {
        "model.embed_tokens": "embedding",
        "model.norm": "norm",
        "lm_head": "head",
    }
    assert roles("bert", "sequence_classification") == {
        "bert.embeddings.word_embeddings": "embedding",
        "bert.embeddings.position_embeddings": "embedding",
        "bert.embeddings.token_type_embeddings": "embedding",
        "bert.embeddings.LayerNorm": "norm",
        "bert.pooler.dense": "other",
        "classifier": "head",
    }
    assert roles("vit", "sequence_classification") == {
        "vit.embeddings.cls_token": "embedding",
        "vit.embeddings.position_embeddings": "embedding",
        "vit.embeddings.patch_embeddings.projection": "embedding",
        "vit.layernorm": "norm",
        "classifier": "head",
    }
    assert roles("llama", "sequence_classification")["score"] == "head"
    assert roles("roberta", "sequence_classification")["classifier.out_proj"] == "head"
    assert roles("t5", "causal_lm")["lm_head"] == "head"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "bert", "roberta", "t5", "vit"])
def test_sites_cover_every_parameter_with_its_true_shape(tiny, architecture) -> None:
    model = tiny(architecture, "sequence_classification")
    found = sites.of(model)
    total = sum(site.out_features * (site.in_features + (site.bias is not None))
                for site in found.values())  # fmt: skip
    named = dict(model.named_parameters(remove_duplicate=False))
    assert total == sum(parameter.numel() for parameter in named.values())
    for site in found.values():
        assert named[site.weight].numel() == sum(
            one.out_features * one.in_features for one in found.at_weight(site.weight)
        )


def test_sites_know_tied_weights_by_identity(tiny) -> None:
    tied = sites.of(tiny("gpt2", "causal_lm")).tied
    assert tied["lm_head.weight"] == ("transformer.wte.weight",)
    assert tied["transformer.wte.weight"] == ("lm_head.weight",)
    assert sites.of(tiny("gpt2", "causal_lm", tie_word_embeddings=False)).tied == {}
    assert "lm_head.weight" in sites.of(tiny("t5", "causal_lm")).tied["shared.weight"]


def test_sites_find_the_site_of_a_parameter_unless_it_is_fused(tiny) -> None:
    found = sites.of(tiny("gpt2"))
    assert found.of_parameter("h.0.mlp.c_fc.bias") is found["h.0.mlp.c_fc"]
    assert found.of_parameter("h.0.mlp.c_fc.weight") is found["h.0.mlp.c_fc"]
    assert found.of_parameter("h.0.attn.c_attn.weight") is None
    assert found.of_parameter("h.0.attn.c_attn.bias") is None
    assert found.of_parameter("nothing") is None


def test_sites_name_the_nearest_when_a_weight_or_role_does_not_exist(tiny) -> None:
    found = sites.of(tiny("gpt2"))
    with pytest.raises(
        InputError, match=r"weight 'h\.0\.mlp\.c_fc' is not known: .*'h\.0\.mlp\.c_fc\.w"
    ):
        found.at_weight("h.0.mlp.c_fc")
    with pytest.raises(InputError, match="role 'keys' is not known: choose one of 'key'"):
        found.with_roles("keys")


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


def test_sites_use_the_configuration_of_the_nearest_model(tiny) -> None:
    model = VisionEncoderDecoderModel(
        encoder=tiny("vit"), decoder=tiny("gpt2", "causal_lm", add_cross_attention=True)
    )
    found = sites.of(model)
    assert found.is_known_architecture
    assert found["encoder.layers.0.attention.q_proj"].role == "query"
    assert found["decoder.transformer.h.0.attn.c_attn:key"].role == "key"
    assert found["decoder.lm_head"].role == "head"
    assert (found.number_of_layers, found["decoder.transformer.h.1.ln_1"].layer) == (4, 3)


class ValueHeadModel(nn.Module):
    """A reward model: a wrapper that is no PreTrainedModel, with a name that looks like a role."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.pretrained_model = model
        self.value = nn.Linear(32, 1)


def test_sites_do_not_take_a_value_head_for_a_value_projection(tiny) -> None:
    found = sites.of(ValueHeadModel(tiny("llama", "causal_lm")))
    assert found["value"].role == "other"
    assert found["pretrained_model.model.layers.0.self_attn.v_proj"].role == "value"
    assert found["pretrained_model.lm_head"].role == "head"
    assert (found.model_type, found.is_known_architecture) == ("llama", True)


def unknown_model() -> OPTModel:
    return OPTModel(
        OPTConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
            max_position_embeddings=32, word_embed_proj_dim=16,
        )
    )  # fmt: skip


def test_sites_of_an_unknown_architecture_refuse_only_roles_of_projections() -> None:
    found = sites.of(unknown_model())
    assert not found.is_known_architecture
    assert found["decoder.layers.1.self_attn.q_proj"].role == "other"
    assert (found.number_of_layers, found["decoder.layers.1.self_attn.q_proj"].layer) == (2, 1)
    assert [site.name for site in found.with_roles("embedding")] == ["decoder.embed_tokens"]
    with pytest.raises(InputError, match=r"model of type 'opt'.*known types are .*gpt2.*roles=\{"):
        found.with_roles("query")


def test_sites_take_the_roles_a_user_gives() -> None:
    given = {"layers.*.self_attn.q_proj": "query", "self_attn.v_proj": "value"}
    found = sites.of(unknown_model(), roles=given)
    names = [site.name for site in found.with_roles("query", "value")]
    assert names == [
        f"decoder.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "vq"
    ]


def test_sites_take_a_fused_layout_a_user_gives() -> None:
    class Fused(PreTrainedModel):
        config_class = GPT2Config

        def __init__(self, config: GPT2Config) -> None:
            super().__init__(config)
            self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    found = sites.of(Fused(GPT2Config(n_embd=8)), roles={"qkv": "query_key_value"})
    assert found["qkv:value"].part == Rows.of_ranges([(16, 24)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attn.q_proj": "query"}, r"roles: 'attn\.q_proj' matches no module: the nearest are"),
        ({"self_attn.q_proj": "querry"}, "'querry' is not known: choose one of 'query'"),
        (
            {"self_attn.q_proj": "query_key_value"},
            "16 output rows, but its configuration describes 48",
        ),
    ],
)
def test_sites_refuse_a_map_of_roles_that_cannot_be(given, message) -> None:
    with pytest.raises(InputError, match=message):
        sites.of(unknown_model(), roles=given)


# peft 0.21 asks transformers 5.23 by a name that is going out of use.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_sites_refuse_a_model_with_adapters(tiny) -> None:
    wrapped = get_peft_model(tiny("bert"), LoraConfig(r=1, target_modules=["query"]))
    for model in (wrapped, wrapped.get_base_model()):
        with pytest.raises(InputError, match="carries adapters: resolve the places of the base"):
            sites.of(model)
    assert sites.of(wrapped.unload()).is_known_architecture


# Card efficientft, check 5: weights and biases of query, key and value at the published sizes.
COUNTS = {
    "gpt2-small": (GPT2Model, GPT2Config(), (7_087_104,) * 3),
    "vit-base": (ViTForImageClassification, ViTConfig(), (7_087_104,) * 3),
    "t5-base": (
        T5ForConditionalGeneration,
        T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12),
        (21_233_664,) * 3,
    ),
    "llama-3.1-8b": (
        LlamaForCausalLM,
        LlamaConfig(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=128256,
            num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
        ),
        (536_870_912, 134_217_728, 134_217_728),
    ),
    "phi-3-mini": (Phi3ForCausalLM, Phi3Config(), (301_989_888,) * 3),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_sites_count_the_scalars_of_each_role_at_published_sizes(name) -> None:
    model_class, config, counts = COUNTS[name]
    found = sites.of(on_meta(model_class, config))
    assert tuple(scalars(found, role) for role in TRIPLE) == counts


def test_sites_count_what_full_tuning_of_roberta_base_trains() -> None:
    # Card efficientft, check 3.
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    model = on_meta(RobertaForSequenceClassification, config)
    found = sites.of(model)
    query, key, value, head = (scalars(found, role) for role in (*TRIPLE, "head"))
    assert (query, key, value, head) == (7_087_104, 7_087_104, 7_087_104, 592_130)
    assert query + value + head == 14_766_338
    assert query + key + value + head == 21_853_442
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_647_170


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


@pytest.mark.parametrize(
    "architecture", ["gpt2", "phi3", "llama", "qwen2", "qwen3", "bert", "roberta", "vit", "t5"]
)
def test_sites_agree_with_what_each_row_does(tiny, architecture) -> None:
    # Five times the usual weights, for at 0.02 a change of one row of a key can vanish in float32;
    # T5, which does not scale its scores, starts large enough.
    size = {} if architecture == "t5" else {"initializer_range": 0.1}
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

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltatune import sites
from deltatune.errors import InputError
from deltatune.part import Rows, Whole


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


def test_sites_give_packed_weights_the_shape_of_their_projection() -> None:
    class Packed(nn.Linear):
        """Stores two values in a byte, as four-bit layers do."""

        def __init__(self, in_features: int, out_features: int) -> None:
            super().__init__(in_features, out_features, bias=False)
            packed = torch.zeros(in_features * out_features // 2, 1, dtype=torch.uint8)
            self.weight = nn.Parameter(packed, requires_grad=False)

    site = sites.of(nn.Sequential(Packed(4, 6)))["0"]
    assert (site.out_features, site.in_features) == (6, 4)

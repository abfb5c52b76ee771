from __future__ import annotations

import pytest
import torch
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from deltatune import sites
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
    "gpt-neox-12x768": (
        GPTNeoXModel,
        GPTNeoXConfig(
            hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
        ),
        (7_087_104,) * 3,
    ),
    "distilbert": (DistilBertModel, DistilBertConfig(), (3_543_552,) * 3),
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

"""Tiny random models of the real classes, for every test."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

_TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GROUPED = {**_WIDTHS, **_TOKENS, "num_key_value_heads": 2, "max_position_embeddings": 64}
_ENCODER = {**_WIDTHS, **_TOKENS, **_NO_DROPOUT, "max_position_embeddings": 66}

_CONFIGURATIONS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _GROUPED),
    "qwen2": (Qwen2Config, _GROUPED),
    "qwen3": (Qwen3Config, {**_GROUPED, "head_dim": 8}),
    "phi3": (Phi3Config, _GROUPED),
    "gpt2": (
        GPT2Config,
        {
            **_TOKENS,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_inner": 48,
            "n_positions": 64,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "bert": (BertConfig, _ENCODER),
    "roberta": (RobertaConfig, _ENCODER),
    "t5": (
        T5Config,
        {
            "vocab_size": 64,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 0,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
        },
    ),
    "vit": (ViTConfig, {**_WIDTHS, **_NO_DROPOUT, "image_size": 16, "patch_size": 8}),
}

NAMES = tuple(_CONFIGURATIONS)


def _class_for(name: str, task: str) -> Any:
    if task == "sequence_classification" and name == "vit":
        return AutoModelForImageClassification
    if task == "causal_lm" and name == "t5":
        return AutoModelForSeq2SeqLM
    return {
        "base": AutoModel,
        "causal_lm": AutoModelForCausalLM,
        "sequence_classification": AutoModelForSequenceClassification,
    }[task]


def configuration(name: str, **overrides: Any) -> PreTrainedConfig:
    """Return the configuration of `tiny(name)`; `overrides` are fields of the configuration."""
    config_class, fields = _CONFIGURATIONS[name]
    return config_class(**{**fields, **overrides})


def tiny(
    name: str,
    task: str = "base",
    *,
    seed: int = 0,
    attention: str | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """Build a tiny random model (2 layers, width 32, 4 heads, vocabulary 64), in evaluation mode.

    Args:
        name: one of `NAMES`.
        task: "base", "causal_lm" (T5: sequence to sequence) or "sequence_classification"
            (ViT: of images).
        seed: of the random weights; the global random state is left as it was.
        attention: an attention implementation, for example "eager".
        overrides: fields of the configuration.
    """
    config = configuration(name, **overrides)
    if name in ("bert", "roberta") and task == "causal_lm":
        config.is_decoder = True
    if attention is not None:
        config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _class_for(name, task).from_config(config).eval()

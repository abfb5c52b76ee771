"""The data rows of `sites.py`: what each module of an architecture is for.

A row maps the exact path of a module, below the nearest model that owns a configuration, to a role
or to the name of a fused layout; `*` stands for an index. A new architecture is one more row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ARCHITECTURES", "LAYOUTS", "Architecture", "Layout", "known_model_types", "row_of"]

Layout = list[tuple[str, list[tuple[int, int]]]]


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Args:
        model_types: the `model_type`s of the configurations it holds for.
        places: path pattern -> role, or the name of a layout of `LAYOUTS`.
    """

    model_types: tuple[str, ...]
    places: Mapping[str, str]


def _contiguous(**lengths: int) -> Layout:
    layout: Layout = []
    start = 0
    for role, length in lengths.items():
        layout.append((role, [(start, start + length)]))
        start += length
    return layout


def _query_key_value(config: Any) -> Layout:
    """`[query | key | value]`, of equal width."""
    width = config.hidden_size
    return _contiguous(query=width, key=width, value=width)


def _key_value(config: Any) -> Layout:
    """`[key | value]`, of equal width: cross-attention whose query is apart."""
    return _contiguous(key=config.hidden_size, value=config.hidden_size)


def _grouped_query_key_value(config: Any) -> Layout:
    """`[query heads | key heads | value heads]`, fewer key and value heads than query heads."""
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    n_key_value = config.num_key_value_heads * d_head
    return _contiguous(
        query=config.num_attention_heads * d_head, key=n_key_value, value=n_key_value
    )


def _query_key_value_of_each_head(config: Any) -> Layout:
    """`[query | key | value]` of the first head, then of the second, and so on."""
    d_head = config.hidden_size // config.num_attention_heads
    starts = range(0, 3 * config.hidden_size, 3 * d_head)
    return [
        (role, [(start + i * d_head, start + (i + 1) * d_head) for start in starts])
        for i, role in enumerate(("query", "key", "value"))
    ]


def _gate_up(config: Any) -> Layout:
    """`[gate | up]`, of equal width."""
    return _contiguous(gate=config.intermediate_size, up=config.intermediate_size)


LAYOUTS: Mapping[str, Callable[[Any], Layout]] = {
    "query_key_value": _query_key_value,
    "key_value": _key_value,
    "grouped_query_key_value": _grouped_query_key_value,
    "query_key_value_of_each_head": _query_key_value_of_each_head,
    "gate_up": _gate_up,
}


def _under(prefix: str, places: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{path}": role for path, role in places.items()}


_Q_K_V_O = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
_BERT_ATTENTION = {
    "self.query": "query",
    "self.key": "key",
    "self.value": "value",
    "output.dense": "output",
}
_T5_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "granite",
            "olmo2",
            "smollm3",
        ),
        {
            "embed_tokens": "embedding",
            **_under("layers.*.self_attn", _Q_K_V_O),
            "layers.*.mlp.gate_proj": "gate",
            "layers.*.mlp.up_proj": "up",
            "layers.*.mlp.down_proj": "down",
        },
    ),
    Architecture(
        ("phi3",),
        {
            "embed_tokens": "embedding",
            "layers.*.self_attn.qkv_proj": "grouped_query_key_value",
            "layers.*.self_attn.o_proj": "output",
            "layers.*.mlp.gate_up_proj": "gate_up",
            "layers.*.mlp.down_proj": "down",
        },
    ),
    Architecture(
        ("gpt2",),
        {
            "wte": "embedding",
            "wpe": "embedding",
            "h.*.attn.c_attn": "query_key_value",
            "h.*.attn.c_proj": "output",
            "h.*.crossattention.q_attn": "query",
            "h.*.crossattention.c_attn": "key_value",
            "h.*.crossattention.c_proj": "output",
            "h.*.mlp.c_fc": "up",
            "h.*.mlp.c_proj": "down",
        },
    ),
    Architecture(
        ("gpt_neox",),
        {
            "embed_in": "embedding",
            "layers.*.attention.query_key_value": "query_key_value_of_each_head",
            "layers.*.attention.dense": "output",
            "layers.*.mlp.dense_h_to_4h": "up",
            "layers.*.mlp.dense_4h_to_h": "down",
        },
    ),
    Architecture(
        ("distilbert",),
        {
            "embeddings.word_embeddings": "embedding",
            "embeddings.position_embeddings": "embedding",
            "transformer.layer.*.attention.q_lin": "query",
            "transformer.layer.*.attention.k_lin": "key",
            "transformer.layer.*.attention.v_lin": "value",
            "transformer.layer.*.attention.out_lin": "output",
            "transformer.layer.*.ffn.lin1": "up",
            "transformer.layer.*.ffn.lin2": "down",
        },
    ),
    Architecture(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        {
            "embeddings.word_embeddings": "embedding",
            "embeddings.position_embeddings": "embedding",
            "embeddings.token_type_embeddings": "embedding",
            **_under("encoder.layer.*.attention", _BERT_ATTENTION),
            **_under("encoder.layer.*.crossattention", _BERT_ATTENTION),
            "encoder.layer.*.intermediate.dense": "up",
            "encoder.layer.*.output.dense": "down",
        },
    ),
    Architecture(
        ("t5", "mt5"),
        {
            "shared": "embedding",
            "embed_tokens": "embedding",
            **_under("block.*.layer.*.SelfAttention", _T5_ATTENTION),
            **_under("block.*.layer.*.EncDecAttention", _T5_ATTENTION),
            "block.*.layer.*.DenseReluDense.wi": "up",
            "block.*.layer.*.DenseReluDense.wi_0": "gate",
            "block.*.layer.*.DenseReluDense.wi_1": "up",
            "block.*.layer.*.DenseReluDense.wo": "down",
        },
    ),
    Architecture(
        ("vit",),
        {
            "embeddings": "embedding",
            "embeddings.patch_embeddings.projection": "embedding",
            **_under("layers.*.attention", _Q_K_V_O),
            "layers.*.mlp.fc1": "up",
            "layers.*.mlp.fc2": "down",
            # The names of transformers 4, which checkpoints and forks still hold.
            "encoder.layer.*.attention.attention.query": "query",
            "encoder.layer.*.attention.attention.key": "key",
            "encoder.layer.*.attention.attention.value": "value",
            "encoder.layer.*.attention.output.dense": "output",
            "encoder.layer.*.intermediate.dense": "up",
            "encoder.layer.*.output.dense": "down",
        },
    ),
)

_BY_MODEL_TYPE = {name: row for row in ARCHITECTURES for name in row.model_types}


def row_of(model_type: str) -> Architecture | None:
    """Return the row of a model type, None where there is none."""
    return _BY_MODEL_TYPE.get(model_type)


def known_model_types() -> tuple[str, ...]:
    """Return every model type that has a row."""
    return tuple(_BY_MODEL_TYPE)

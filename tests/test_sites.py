from __future__ import annotations

from deltatune import sites


def test_sites_split_gpt2_attention_into_thirds(tiny) -> None:
    found = sites.of(tiny("gpt2", "causal_lm"))
    value = found["transformer.h.1.attn.c_attn:value"]
    assert value.part.indices.tolist() == list(range(64, 96))
    assert (value.out_features, value.in_features, value.transposed) == (32, 32, True)

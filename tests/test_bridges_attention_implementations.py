"""A composite keeps the implementation of each of its parts."""

from deltatune.bridges.attention_implementations import AttentionImplementations
from deltatune.role_probe import probe_roles
from tests.families import build


def test_restoring_brings_back_each_part_of_a_composite() -> None:
    model = build("clip")
    model.config.text_config._attn_implementation = "eager"
    model.config.vision_config._attn_implementation = "sdpa"
    before = AttentionImplementations(model)
    top = model.config._attn_implementation_internal
    model.set_attn_implementation("eager")
    assert model.config.vision_config._attn_implementation == "eager"
    before.restore()
    assert model.config._attn_implementation_internal == top
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_probe_leaves_the_parts_of_a_composite_as_they_were() -> None:
    model = build("llava", attention="eager")
    model.config.vision_config._attn_implementation = "sdpa"
    projection = "model.language_model.layers.0.self_attn.q_proj"
    assert probe_roles(model, projection, [0]) == ["query"]
    parts = model.config, model.config.text_config, model.config.vision_config
    assert [part._attn_implementation for part in parts] == ["eager", "eager", "sdpa"]

"""What every declared delta must keep, found without registration."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

import deltatune  # noqa: F401 - lets peft know the type DELTA
from deltatune import parts, sites
from deltatune.bridges.peft_config import delta_config
from deltatune.part import Entries, Whole
from deltatune.seeds import generator_for
from deltatune.selections.by_role import ByRole
from tests.models import tiny

KINDS = sorted(parts.known("deltas"))
MODELS = {"llama": "causal_lm", "gpt2": "causal_lm", "phi3": "causal_lm", "bert": "base"}


def _options(kind):
    return parts.known("deltas")[kind].options()


def _selection(kind, model, places):
    """Query and value; single entries of them where the delta wants entries."""
    selection = ByRole(roles=("query", "value"))(model, places)
    if kind != "entries":
        return selection
    chosen = {}
    for weight, part in selection.items():
        rows = torch.arange(4) if part == Whole() else part.indices[::7]
        chosen[weight] = Entries(rows * model.get_submodule(places.at_weight(weight)[0].module).weight.shape[
            0 if places.at_weight(weight)[0].transposed else 1
        ] + 3)
    return chosen


def _ids():
    return torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))


def _prepared(kind, name="llama", seed=0, dtype=torch.float32):
    model = tiny(name, MODELS[name]).to(dtype).eval()
    places = sites.of(model)
    config = delta_config(_options(kind), places, _selection(kind, model, places), seed=seed)
    return peft.get_peft_model(model, config).eval()


def _shake(model, scale=0.2):
    """Move every trainable value away from its start."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator_for(5, name))
            parameter.data += scale * noise.to(parameter.dtype)
    return model


def _output(model):
    return model(input_ids=_ids())[0].detach()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_delta_is_zero_at_the_start(kind, name):
    model = _prepared(kind, name)
    assert torch.equal(_output(model), _output(tiny(name, MODELS[name]).eval().requires_grad_(False)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged_and_unmerging_gives_the_base_back(kind, name):
    model = _shake(_prepared(kind, name))
    base = {n: p.clone() for n, p in model.named_parameters() if "base_layer" in n}
    wanted = _output(model)
    with model.disable_adapter():
        plain = _output(model)
    assert (wanted - plain).abs().max() > 1e-3
    model.merge_adapter(safe_merge=True)
    # float32 sums in another order: a few rounding errors of values near 1
    torch.testing.assert_close(_output(model), wanted, rtol=1e-5, atol=2e-5)
    model.unmerge_adapter()
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    torch.testing.assert_close(_output(model.merge_and_unload()), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "phi3"])
@pytest.mark.parametrize("kind", KINDS)
def test_key_rows_of_a_fused_weight_never_change(kind, name):
    model = _shake(_prepared(kind, name))
    places = sites.of(tiny(name, MODELS[name]))
    changed = 0
    for path, layer in model.named_modules():
        if type(layer).__name__ != "DeltaLayer":
            continue
        change = layer.delta_out_in("default")
        for site in places.at_weight(path.removeprefix("base_model.model.") + ".weight"):
            moved = bool(change[site.part.indices].any())
            assert moved == (site.role in ("query", "value")), site.name
            changed += moved
    assert changed == 4


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "entries"])
def test_parameter_count_equals_the_formula(kind):
    declaration = parts.known("deltas")[kind]
    model = _prepared(kind)
    places = sites.of(tiny("llama", "causal_lm"))
    wanted = sum(
        declaration.implementation.number_of_parameters(_options(kind), site.out_features, site.in_features)
        for site in places.with_roles("query", "value")
    )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_tensor_gets_a_gradient_and_the_base_stays(kind):
    model = _shake(_prepared(kind)).train()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=_ids(), labels=_ids()).loss.backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in trained)
        optimizer.step()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_saves_and_loads_under_another_adapter_name(kind, name, tmp_path):
    model = _shake(_prepared(kind, name))
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(
        tiny(name, MODELS[name]).eval(), tmp_path, adapter_name="another"
    )
    assert torch.equal(_output(loaded), _output(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not list(Path(tmp_path).glob("*.bin"))


@pytest.mark.parametrize("kind", KINDS)
def test_two_adapters_add_up(kind, tmp_path):
    first, second = _shake(_prepared(kind)), _shake(_prepared(kind, seed=1), scale=-0.3)
    second.save_pretrained(tmp_path)
    layer = next(m for m in first.modules() if type(m).__name__ == "DeltaLayer")
    other = next(m for m in second.modules() if type(m).__name__ == "DeltaLayer")
    wanted = layer.delta_out_in("default") + other.delta_out_in("default")
    first.load_adapter(str(tmp_path), adapter_name="second")
    first.base_model.set_adapter(["default", "second"])
    inputs = torch.randn(3, layer.in_features)
    torch.testing.assert_close(
        layer(inputs), layer.base_layer(inputs) + inputs @ wanted.T, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind):
    wanted = _output(_shake(_prepared(kind)))
    given = _output(_shake(_prepared(kind, dtype=torch.bfloat16)))
    assert given.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; a handful of layers lose a few more
    assert (given.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_the_same_start_in_any_order(kind):
    torch.manual_seed(1)
    one = dict(_prepared(kind).named_parameters())
    torch.manual_seed(2)
    two, three = dict(_prepared(kind).named_parameters()), dict(_prepared(kind, seed=9).named_parameters())
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert kind == "entries" or any(not torch.equal(value, three[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_delta_output_is_the_delta_weight_applied(kind):
    declaration = parts.known("deltas")[kind]
    weight = torch.randn(12, 10, generator=generator_for(0, "w"))
    part = Entries(torch.tensor([3, 17, 118])) if kind == "entries" else None
    delta = declaration.implementation(
        _options(kind), weight, "a place", part=part, generator=generator_for(0, "d")
    )
    _shake(delta)
    inputs = torch.randn(2, 3, 10)
    wanted = nn.functional.linear(inputs, delta.delta_weight(weight))
    torch.testing.assert_close(delta.eval().delta_output(inputs, weight), wanted, rtol=1e-5, atol=1e-5)
    factors = delta.low_rank_factors()
    if factors is not None:
        torch.testing.assert_close(factors[0] @ factors[1], delta.delta_weight(weight))

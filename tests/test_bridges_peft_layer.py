"""The layer that holds deltas: forward, folding, dtypes, and what it keeps."""

from __future__ import annotations

from functools import partial

import peft
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from deltatune import sites
from deltatune.bridges.peft_config import delta_config
from deltatune.bridges.peft_cut import AxisCut, with_changes
from deltatune.deltas.low_rank import LowRank, LowRankDelta
from deltatune.errors import NotMergeable, WorkError
from deltatune.part import Whole
from deltatune.selections.by_role import ByRole
from tests.adapters import layers_of, logits_of, shaken, with_delta
from tests.models import tiny

SCATTERED = ((0, 2), (5, 6), (3, 4))


def changes(inputs, *ranges):
    """Changes of as many outputs as each list of ranges names, all functions of `inputs`."""
    cuts = [AxisCut(given) for given in ranges]
    sizes = [6 if cut.is_whole else cut.take(torch.arange(6), 0).numel() for cut in cuts]
    return [
        (cut, (i + 1) * inputs[:, :size])
        for i, (cut, size) in enumerate(zip(cuts, sizes, strict=True))
    ]


@pytest.mark.parametrize("ranges", [[None], [((1, 4),)], [SCATTERED], [((0, 2),), SCATTERED, None]])
def test_changes_are_added_to_their_rows_with_the_right_gradients(ranges):
    output = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    wanted = output.detach().clone()
    for cut, change in changes(inputs.detach(), *ranges):
        wanted[:, cut.take(torch.arange(6), 0)] += change
    torch.testing.assert_close(with_changes(output, changes(inputs, *ranges)).detach(), wanted)

    def added(output, inputs):
        return with_changes(output, changes(inputs, *ranges))

    assert torch.autograd.gradcheck(added, (output, inputs))


def test_adding_changes_to_rows_keeps_nothing_and_leaves_the_output_alone():
    output, inputs = torch.zeros(3, 6), torch.ones(3, 6, requires_grad=True)
    given = changes(inputs, ((0, 2),), SCATTERED)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        with_changes(output, given)
    assert kept == []
    assert not output.any()


def test_merging_two_adapters_adds_both_to_the_untouched_base(tmp_path):
    model = shaken(with_delta("low_rank", dtype=torch.bfloat16))
    shaken(with_delta("low_rank", seed=1), scale=-0.3).save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), adapter_name="second")
    layer = next(iter(layers_of(model).values()))
    before = layer.base_layer.weight
    change = layer.get_delta_weight("default") + layer.get_delta_weight("second")
    layer.merge(adapter_names=["default"])
    with pytest.warns(UserWarning, match="Already following adapters were merged"):
        layer.merge(adapter_names=["second"])
    # Rounded once, however many were folded in one after the other.
    assert torch.equal(layer.base_layer.weight, (before.float() + change).to(torch.bfloat16))
    layer.unmerge()
    assert layer.base_layer.weight is before


def test_disabling_a_merged_adapter_gives_the_base_back():
    model = shaken(with_delta("low_rank"))
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(tiny("llama", "causal_lm")))


@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
def test_merging_a_tied_head_leaves_the_embedding_alone():
    base = tiny("gpt2", "causal_lm")
    assert base.lm_head.weight is base.transformer.wte.weight
    before = base.transformer.wte.weight.clone()
    config = delta_config(LowRank(rank=2), sites.of(base), {"lm_head.weight": Whole()})
    model = shaken(peft.get_peft_model(base, config))
    wanted = logits_of(model)
    plain = model.merge_and_unload()
    assert torch.equal(plain.transformer.wte.weight, before)
    assert plain.config.tie_word_embeddings is False
    torch.testing.assert_close(logits_of(plain), wanted, rtol=1e-5, atol=2e-5)


def test_merging_stops_at_values_that_are_not_finite_and_changes_nothing():
    model = shaken(with_delta("low_rank"))
    layer = next(iter(layers_of(model).values()))
    before = layer.base_layer.weight
    layer.deltas("default")[0].delta.up.data[0, 0] = float("inf")
    with pytest.raises(WorkError, match="folding default gives values that are not finite"):
        layer.merge(safe_merge=True)
    assert layer.base_layer.weight is before
    assert not layer.merged


@pytest.fixture
def with_bias(monkeypatch):
    """Let low rank change every bias by one half."""

    def half(self, bias):
        return torch.full((self.out_features,), 0.5)

    monkeypatch.setattr(LowRankDelta, "delta_bias", half)


@pytest.mark.usefixtures("with_bias")
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_change_of_the_bias_is_added_folded_and_taken_back(name):
    model = shaken(with_delta("low_rank", name))
    layer = next(iter(layers_of(model).values()))
    before = layer.base_layer.bias.clone()
    wanted = logits_of(model)
    model.merge_adapter()
    moved = layer.base_layer.bias - before
    own = layer.deltas("default")
    changed = torch.cat([delta.cut.rows.take(moved, 0) for delta in own])
    torch.testing.assert_close(changed, torch.full_like(changed, 0.5))
    assert int((moved != 0).sum()) == changed.numel()
    torch.testing.assert_close(logits_of(model), wanted, rtol=1e-5, atol=2e-5)
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.bias, before)
    assert not layer.supports_lora_conversion()


@pytest.mark.usefixtures("with_bias")
def test_a_change_of_a_bias_that_the_base_lacks_acts_but_is_not_folded():
    model = with_delta("low_rank")
    layer = next(iter(layers_of(model).values()))
    inputs = torch.randn(2, 32)
    torch.testing.assert_close(layer(inputs), layer.base_layer(inputs) + 0.5)
    with pytest.raises(NotMergeable, match=r"LowRank changes the bias of .*q_proj, which has none"):
        model.merge_adapter()


def test_a_delta_that_cannot_be_folded_says_so(monkeypatch):
    monkeypatch.setattr(LowRankDelta, "is_mergeable", False)
    with pytest.raises(NotMergeable, match=r"LowRank of .*q_proj cannot be folded into its base"):
        with_delta("low_rank").merge_and_unload()


def test_peft_takes_the_base_dtype_for_adapters_where_it_is_asked_to():
    model = tiny("llama", "causal_lm").to(torch.bfloat16)
    places = sites.of(model)
    config = delta_config(LowRank(rank=2), places, ByRole(roles=("query",))(model, places))
    made = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    assert {p.dtype for p in made.parameters() if p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_widened_activations_are_kept_on_a_bfloat16_base(name):
    model = shaken(with_delta("low_rank", name, dtype=torch.bfloat16)).train()
    layer = next(iter(layers_of(model).values()))
    inputs = torch.randn(50, 32).to(torch.bfloat16).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(inputs)
    activations = [tensor for tensor in kept if 50 in tensor.shape]
    assert activations
    assert all(tensor.dtype == torch.bfloat16 for tensor in activations)
    wide = {t.untyped_storage().data_ptr() for t in activations if t.numel() == inputs.numel()}
    assert wide == {inputs.untyped_storage().data_ptr()}


@pytest.mark.parametrize("kind", ["low_rank", "entries", "sum"])
def test_gradients_are_the_same_with_checkpointing(kind):
    layer = next(iter(layers_of(shaken(with_delta(kind, "gpt2"))).values()))
    inputs = torch.randn(5, 32)
    gradients = []
    for call in (layer, partial(checkpoint, layer, use_reentrant=False)):
        layer.zero_grad()
        call(inputs).square().sum().backward()
        gradients.append([p.grad for p in layer.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_deleting_an_adapter_leaves_the_other(tmp_path):
    model = shaken(with_delta("low_rank"))
    wanted = logits_of(model)
    shaken(with_delta("low_rank", seed=1)).save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), adapter_name="second")
    model.set_adapter("second")
    assert not torch.equal(logits_of(model), wanted)
    with pytest.warns(UserWarning, match="Adapter second was active which is now deleted"):
        model.delete_adapter("second")
    assert torch.equal(logits_of(model), wanted)


def test_low_rank_layer_is_base_plus_scaled_product():
    model = shaken(with_delta("low_rank"))
    layer = next(iter(layers_of(model).values()))
    delta = layer.deltas("default")[0].delta
    inputs = torch.randn(4, 32)
    wanted = F.linear(inputs, layer.base_layer.weight + 2.0 * delta.up @ delta.down)
    torch.testing.assert_close(layer(inputs), wanted, rtol=1e-5, atol=1e-5)

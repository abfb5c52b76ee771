"""What the low-rank delta itself promises."""

from __future__ import annotations

import math
from functools import partial

import peft
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from deltatune import sites
from deltatune.bridges.peft_config import delta_config
from deltatune.deltas.low_rank import LowRank, LowRankDelta
from deltatune.errors import InputError, NotComposable
from deltatune.part import Entries, Rows
from deltatune.seeds import generator_for
from deltatune.selections.by_role import ByRole
from tests.adapters import logits_of, shaken
from tests.models import tiny


def made(
    options: LowRank, out_features: int = 6, in_features: int = 8, seed: int = 0
) -> LowRankDelta:
    weight = torch.zeros(out_features, in_features)
    return LowRankDelta(options, weight, "here", generator=generator_for(seed, "here"))


def test_low_rank_worked_by_hand():
    delta = made(LowRank(rank=1, alpha=2.0), 2, 3)
    delta.up.data = torch.tensor([[1.0], [-1.0]])
    delta.down.data = torch.tensor([[1.0, 0.0, 2.0]])
    weight = torch.zeros(2, 3)
    assert delta.delta_weight(weight).tolist() == [[2.0, 0.0, 4.0], [-2.0, 0.0, -4.0]]
    assert delta.delta_output(torch.tensor([1.0, 1.0, 1.0]), weight).tolist() == [6.0, -6.0]


@pytest.mark.parametrize(("is_stabilized", "scale"), [(False, 4.0), (True, 8.0)])
def test_low_rank_scale_is_alpha_over_rank_or_its_root(is_stabilized, scale):
    assert LowRank(rank=4, alpha=16.0, rank_stabilized=is_stabilized).scale == scale


@pytest.mark.parametrize("is_stabilized", [False, True])
def test_low_rank_is_the_lora_of_peft_when_its_factors_are_the_same(is_stabilized):
    base = tiny("llama", "causal_lm")
    places = sites.of(base)
    selection = ByRole(roles=("query", "value"))(base, places)
    options = LowRank(rank=4, alpha=6.0, rank_stabilized=is_stabilized)
    ours = shaken(peft.get_peft_model(base, delta_config(options, places, selection))).eval()
    lora = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=is_stabilized, target_modules=["q_proj", "v_proj"]
    )
    theirs = peft.get_peft_model(tiny("llama", "causal_lm"), lora).eval()
    factors = {"down": "lora_A", "up": "lora_B"}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            path, _, own = name.partition(".delta_.")
            factor = factors[own.rpartition(".")[2]]
            theirs.get_submodule(f"{path}.{factor}.default").weight.data = parameter.data
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), rtol=1e-5, atol=1e-5)


def test_low_rank_starts_as_kaiming_uniform_with_slope_root_five():
    down = made(LowRank(rank=6), 64, 400).down.detach()
    bound = math.sqrt(6 / ((1 + 5) * 400))  # Kaiming's formula, fan 400; equals 1 / sqrt(400)
    assert bound == pytest.approx(1 / 20)
    assert bound * 0.98 < float(down.abs().max()) < bound
    # 2400 uniform values: the standard error of their deviation bound / sqrt(3) is about 1 %.
    assert float(down.std()) == pytest.approx(bound / math.sqrt(3), rel=0.04)


def test_low_rank_start_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = made(LowRank(rank=2)).down
    torch.manual_seed(1)
    assert torch.equal(first, made(LowRank(rank=2)).down)
    assert not torch.equal(first, made(LowRank(rank=2), seed=1).down)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_rank_keeps_only_its_inputs_and_a_narrow_tensor_for_the_backward(dtype):
    delta = made(LowRank(rank=2, dropout=0.5), 64, 96).train()
    inputs = torch.randn(40, 96).to(dtype).requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        delta.delta_output(inputs, torch.zeros(64, 96))
    assert kept
    own = {inputs.untyped_storage().data_ptr()}
    others = [t for t in kept if t.untyped_storage().data_ptr() not in own]
    # Casts of the factors, (rank, in) and (out, rank), and the hidden (tokens, rank).
    assert max(tensor.numel() for tensor in others) <= 2 * 96
    assert all(tensor.dtype == dtype for tensor in kept if tensor.shape[0] == 40)


def test_low_rank_dropout_acts_only_while_training_and_keeps_the_mean():
    delta = shaken(made(LowRank(rank=2, dropout=0.25), 4, 5))
    inputs = torch.randn(3, 5, generator=generator_for(0, "x"))
    wanted = delta.eval().delta_output(inputs, torch.zeros(4, 5))
    assert torch.equal(wanted, delta.delta_output(inputs, torch.zeros(4, 5)))
    delta.train()
    torch.manual_seed(0)
    draws = torch.stack([delta.delta_output(inputs, torch.zeros(4, 5)) for _ in range(4000)])
    spread = draws.std(0) / math.sqrt(4000)
    assert draws.std() > 0
    assert ((draws.mean(0) - wanted).abs() < 5 * spread).all()  # five standard errors


def test_low_rank_gradient_under_dropout_is_that_of_the_drawn_mask():
    delta = shaken(made(LowRank(rank=2, dropout=0.5), 4, 5)).double().train()
    inputs = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def output(*given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)  # numerical differences need the same mask again
        return delta.delta_output(given[0], torch.zeros(4, 5))

    assert torch.autograd.gradcheck(output, (inputs, delta.down, delta.up))


def test_low_rank_dropout_is_the_same_when_recomputed_by_checkpointing():
    delta = shaken(made(LowRank(rank=2, dropout=0.5))).train()
    inputs = torch.randn(3, 8, generator=generator_for(0, "x"))
    gradients = []
    for recomputes in (False, True):
        delta.zero_grad()
        torch.manual_seed(3)
        call = partial(delta.delta_output, weight=torch.zeros(6, 8))
        output = checkpoint(call, inputs, use_reentrant=False) if recomputes else call(inputs)
        output.square().sum().backward()
        gradients.append(delta.down.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_low_rank_works_under_autocast(dropout):
    delta = shaken(made(LowRank(rank=2, dropout=dropout))).train()
    inputs = torch.randn(3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = delta.delta_output(inputs, torch.zeros(6, 8))
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert inputs.grad.dtype == delta.down.grad.dtype == torch.float32
    assert bool(delta.down.grad.any())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank=0 is not allowed: give an integer from 1 to min"),
        ({"alpha": float("nan")}, "alpha=nan is not allowed: give a finite number above 0"),
        ({"alpha": 0.0}, "alpha=0.0 is not allowed"),
        ({"dropout": 1.0}, r"dropout=1.0 is not allowed: give a probability in \[0, 1\)"),
    ],
)
def test_low_rank_refuses_options_out_of_range(fields, message):
    with pytest.raises(InputError, match=message):
        LowRank(**fields)


def test_low_rank_refuses_a_rank_above_the_smaller_side():
    message = r"rank=7 is not allowed: give an integer from 1 to 6 = min\(out, in\) of here"
    with pytest.raises(InputError, match=message):
        made(LowRank(rank=7))
    made(LowRank(rank=6))


def test_low_rank_refuses_single_entries_and_names_what_takes_them():
    part = Entries(torch.tensor([3]))
    with pytest.raises(
        NotComposable, match=r"LowRank changes whole weights.*single entries of here"
    ):
        LowRankDelta(LowRank(rank=1), torch.zeros(2, 3), "here", part=part)
    with pytest.raises(InputError, match="Rows of here given to a delta: cut the weight to them"):
        LowRankDelta(LowRank(rank=1), torch.zeros(2, 3), "here", part=Rows(torch.tensor([0])))

"""What the delta of single entries itself promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deltatune.deltas import entries
from deltatune.deltas.entries import EntryValues, EntryValuesDelta
from deltatune.errors import NotComposable
from deltatune.part import Entries
from deltatune.seeds import generator_for

FEW, MANY = 30, 2000  # of 64 x 64 entries: gathered, and as a dense product


def made(number: int, out_features: int = 64, in_features: int = 64) -> EntryValuesDelta:
    generator = generator_for(0, "indices")
    order = torch.randperm(out_features * in_features, generator=generator)[:number]
    weight = torch.zeros(out_features, in_features)
    delta = EntryValuesDelta(EntryValues(), weight, "here", part=Entries(order))
    delta.values.data = torch.randn(number, generator=generator)
    return delta


def test_entries_worked_by_hand():
    part = Entries(torch.tensor([5, 1]))
    delta = EntryValuesDelta(EntryValues(), torch.zeros(2, 3), "here", part=part)
    delta.values.data = torch.tensor([-1.0, 2.0])
    weight = torch.zeros(2, 3)
    assert delta.delta_weight(weight).tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, -1.0]]
    assert delta.delta_output(torch.tensor([1.0, 2.0, 3.0]), weight).tolist() == [4.0, -3.0]


def test_entries_of_a_whole_weight_are_a_dense_change():
    part = Entries(torch.arange(6))
    delta = EntryValuesDelta(EntryValues(), torch.zeros(2, 3), "here", part=part)
    delta.values.data = torch.arange(6.0)
    assert torch.equal(delta.delta_weight(torch.zeros(2, 3)), torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("chunk", [2**18, 50])
@pytest.mark.parametrize("number", [FEW, MANY])
def test_entries_output_and_gradients_equal_the_dense_change(number, chunk, monkeypatch):
    monkeypatch.setattr(entries, "_CPU", entries._Costs(gathered=96, chunk=chunk))
    delta = made(number)
    inputs = torch.randn(2, 5, 64, generator=generator_for(0, "x"), requires_grad=True)
    arriving = torch.randn(2, 5, 64, generator=generator_for(0, "g"))
    weight = torch.zeros(64, 64)
    roots = (inputs, delta.values)
    given = delta.delta_output(inputs, weight)
    wanted = F.linear(inputs, delta.delta_weight(weight))
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(given, roots, arriving),
        torch.autograd.grad(wanted, roots, arriving),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("number", [FEW, MANY])
def test_entries_keep_nothing_but_their_inputs_for_the_backward(number):
    delta = made(number)
    inputs = torch.randn(40, 64, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        delta.delta_output(inputs, torch.zeros(64, 64))
    own = [inputs, delta.values, delta.indices]
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in own]


def test_few_entries_never_form_the_dense_change(monkeypatch):
    def forbidden(*args: object) -> None:
        raise AssertionError("the dense change was formed")

    monkeypatch.setattr(entries, "_dense", forbidden)
    made(FEW).delta_output(
        torch.randn(5, 64, requires_grad=True), torch.zeros(64, 64)
    ).sum().backward()
    with pytest.raises(AssertionError, match="dense"):
        made(MANY).delta_output(torch.randn(5, 64), torch.zeros(64, 64))


@pytest.mark.parametrize("number", [FEW, MANY])
def test_entries_skip_gradients_that_nobody_wants(number):
    delta = made(number)
    delta.delta_output(torch.randn(5, 64), torch.zeros(64, 64)).sum().backward()
    assert bool(delta.values.grad.any())
    inputs = torch.randn(5, 64, requires_grad=True)
    delta.requires_grad_(False).delta_output(inputs, torch.zeros(64, 64)).sum().backward()
    assert bool(inputs.grad.any())


def test_gathered_entries_add_up_in_float32_on_bfloat16_inputs():
    # 256 + 30 x 1: summed in bfloat16, whose step at 256 is 2, every 1 would be lost.
    part = Entries(torch.arange(31))
    delta = EntryValuesDelta(EntryValues(), torch.zeros(64, 64), "here", part=part)
    delta.values.data = torch.tensor([256.0] + [1.0] * 30)
    inputs = torch.ones(1, 64, dtype=torch.bfloat16)
    output = delta.delta_output(inputs, torch.zeros(64, 64)).detach()
    assert output.dtype == torch.bfloat16
    assert float(output[0, 0]) == 286.0


def test_entries_count_beyond_the_range_of_32_bits():
    width = 65536
    weight = torch.zeros(1).expand(width, width)  # 2^32 entries in four bytes
    last = width * width - 1
    delta = EntryValuesDelta(EntryValues(), weight, "here", part=Entries(torch.tensor([last, 7])))
    delta.values.data = torch.tensor([2.0, 3.0])
    inputs = torch.zeros(1, width)
    inputs[0, -1], inputs[0, 7] = 5.0, 1.0
    output = delta.delta_output(inputs, weight).detach()
    assert float(output[0, -1]) == 10.0
    assert float(output[0, 0]) == 3.0
    assert int(output.count_nonzero()) == 2


def test_entries_indices_stay_int64_when_the_dtype_changes():
    delta = made(FEW)
    before = delta.indices.clone()
    moved = delta.to(torch.bfloat16)
    assert moved.values.dtype == torch.bfloat16
    assert moved.indices.dtype == torch.int64
    assert torch.equal(moved.indices, before)


@pytest.mark.parametrize("number", [FEW, MANY])
def test_entries_work_under_autocast(number):
    delta = made(number)
    inputs = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = delta.delta_output(inputs, torch.zeros(64, 64))
    (output.float() + F.linear(inputs, torch.ones(64, 64))).sum().backward()
    assert inputs.grad.dtype == delta.values.grad.dtype == torch.float32


def test_entries_without_a_choice_name_the_selection_that_makes_one():
    with pytest.raises(
        NotComposable, match=r"EntryValues changes single entries.*selection explicit"
    ):
        EntryValuesDelta(EntryValues(), torch.zeros(2, 3), "here")

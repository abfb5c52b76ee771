"""The frozen product and the thin factors of its deltas, as one step of autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune.bridges.peft_cut import Cut
from deltatune.bridges.peft_factored import Term, factored_linear, is_plain
from deltatune.deltas.delta import ActingFactors
from deltatune.deltas.dropping import keep_mask, kept_share

CUTS = {
    "whole": (None, None),
    "stretches": ([(2, 5)], [(1, 4)]),
    "scattered": ([(0, 1), (3, 5)], [(0, 2), (4, 5)]),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def parts_of(kind: str) -> tuple[Cut, Tensor, Tensor, Tensor, Tensor]:
    """Return a cut, inputs (2, 3, 5), a weight (6, 5), and factors of rank 2 that fit the cut."""
    cut = Cut(*CUTS[kind])
    rows, columns = cut.weight(torch.empty(6, 5)).shape
    inputs, weight = random(2, 3, 5).requires_grad_(), random(6, 5, seed=1)
    up, down = random(rows, 2, seed=2), random(2, columns, seed=3)
    return cut, inputs, weight, up.requires_grad_(), down.requires_grad_()


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_factored_linear_is_the_product_with_the_changed_weight(kind, has_bias):
    cut, inputs, weight, up, down = parts_of(kind)
    bias = random(6, seed=4) if has_bias else None
    terms = [Term(cut, ActingFactors(up, down, scale=3.0))]
    output = factored_linear(inputs, weight, bias, terms)
    changed = weight + cut.spread(3 * up @ down, 6, 5)
    expected = F.linear(inputs, changed, bias)
    # float64: what remains is the order of the sums.
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    leaves = (inputs, up, down)
    gradient = random(2, 3, 6, seed=5)
    found = torch.autograd.grad(output, leaves, gradient)
    wanted = torch.autograd.grad(expected, leaves, gradient)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CUTS)
def test_factored_linear_of_a_single_token_is_that_of_a_batch_of_one(kind):
    cut, inputs, weight, up, down = parts_of(kind)
    terms = [Term(cut, ActingFactors(up, down, scale=3.0))]
    alone = factored_linear(inputs[0, 0], weight, None, terms)
    assert alone.shape == (6,)
    batch = factored_linear(inputs[:1, 0], weight, None, terms)[0]
    torch.testing.assert_close(alone, batch, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(alone.sum(), (inputs, up, down))
    wanted = torch.autograd.grad(batch.sum(), (inputs, up, down))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CUTS)
def test_factored_linear_has_exact_first_and_second_derivatives(kind):
    cut, inputs, weight, up, down = parts_of(kind)

    def output(inputs: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return factored_linear(inputs, weight, None, [Term(cut, ActingFactors(up, down, 0.5))])

    assert torch.autograd.gradcheck(output, (inputs, up, down))
    assert torch.autograd.gradgradcheck(output, (inputs, up, down))


def test_factored_linear_with_dropout_has_the_gradients_of_one_mask():
    cut, inputs, weight, up, down = parts_of("whole")
    terms = [Term(cut, ActingFactors(up, down, dropout=0.5))]
    torch.manual_seed(3)
    output = factored_linear(inputs, weight, None, terms)
    torch.manual_seed(3)
    mask = keep_mask(inputs.flatten(0, 1), int(torch.randint(2**62, ())), 0.5).view_as(inputs)
    assert 0 < mask.sum() < mask.numel()
    expected = F.linear(inputs, weight) + (inputs * mask / kept_share(0.5)) @ down.T @ up.T
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    gradient, leaves = random(2, 3, 6, seed=5), (inputs, up, down)
    found = torch.autograd.grad(output, leaves, gradient)
    wanted = torch.autograd.grad(expected, leaves, gradient)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_factored_linear_keeps_its_inputs_and_the_thin_hidden_alone():
    cut, inputs, weight, up, down = parts_of("whole")
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    terms = [Term(cut, ActingFactors(up, down, dropout=0.5))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        factored_linear(inputs, weight, None, terms)
    known = {tensor.data_ptr() for tensor in (inputs, weight, up, down)}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in known] == [(6, 2)]


def test_only_frozen_products_without_hooks_are_plain():
    linear = nn.Linear(4, 3).requires_grad_(False)
    assert is_plain(linear)
    assert is_plain(Conv1D(3, 4).requires_grad_(False))
    assert not is_plain(nn.Linear(4, 3))

    class Quantized(nn.Linear):
        pass

    assert not is_plain(Quantized(4, 3).requires_grad_(False))
    handle = linear.register_forward_hook(lambda *_: None)
    assert not is_plain(linear)
    handle.remove()
    linear.forward = lambda inputs: inputs  # as offloading does
    assert not is_plain(linear)

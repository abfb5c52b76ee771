"""Short attention of bfloat16 training on a CPU is computed in float32; nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from deltatune.bridges import short_attention
from deltatune.bridges.short_attention import SHORT, ShortAttention
from deltatune.run import finetune
from tests.folders import completions, model_folder


def heads(tokens: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """Return query, key and value, each (2, 3, tokens, 8)."""
    generator = torch.Generator().manual_seed(tokens)
    made = [torch.randn(2, 3, tokens, 8, generator=generator) for _ in range(3)]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def attention(query, key, value, mask=None):
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def with_gradients(inputs, mask=None):
    output = attention(*inputs, mask)
    return [output, *torch.autograd.grad(output.float().square().sum(), inputs)]


MASKS = {
    "none": None,
    "boolean": torch.ones(7, 7, dtype=torch.bool).tril(),
    "added": torch.full((7, 7), -30.0, dtype=torch.bfloat16).triu(1),
}


@pytest.mark.parametrize("mask", MASKS)
def test_output_and_gradients_are_those_of_float32_rounded_once(mask):
    inputs = heads(7)
    with ShortAttention():
        found = with_gradients(inputs, MASKS[mask])
    exact = with_gradients(
        [t.detach().float().requires_grad_() for t in inputs], _float(MASKS[mask])
    )
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 4
    for ours, wanted in zip(found, exact, strict=True):
        # The gradient of a rounded output: one rounding, eight bits.
        torch.testing.assert_close(ours.float(), wanted, rtol=2**-6, atol=2**-6)
    assert torch.equal(found[0], exact[0].to(torch.bfloat16))


def _float(mask):
    return mask.float() if mask is not None and mask.is_floating_point() else mask


def test_autocast_gives_what_it_would_give(monkeypatch):
    inputs = heads(7, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = attention(*inputs)
        with ShortAttention():
            short = attention(*inputs)
            product = inputs[0] @ inputs[0].mT
    assert plain.dtype == short.dtype == product.dtype == torch.bfloat16
    torch.testing.assert_close(short, plain, rtol=2**-6, atol=2**-6)


def test_float32_and_long_sequences_are_left_to_torch():
    for inputs in (heads(7, torch.float32), heads(SHORT)):
        plain = attention(*inputs)
        with ShortAttention():
            assert torch.equal(attention(*inputs), plain)
            assert attention(*inputs).dtype == plain.dtype


@pytest.mark.parametrize(("precision", "calls"), [("bfloat16", True), ("float32", False)])
@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_bfloat16_training_takes_it(precision, calls, recipe, tmp_path, monkeypatch):
    entered = []

    class Seen(ShortAttention):
        def __enter__(self):
            entered.append(1)
            return super().__enter__()

    monkeypatch.setattr(short_attention, "ShortAttention", Seen)
    training = {"batch_size": 4, "max_length": 32, "steps": 2, "precision": precision}
    run = finetune(
        model_folder(tmp_path / "llama"),
        completions(16),
        recipe,
        output=tmp_path / "run",
        assignments={f"training.{name}": value for name, value in training.items()},
    )
    assert bool(entered) == calls
    assert run.after["loss"] > 0

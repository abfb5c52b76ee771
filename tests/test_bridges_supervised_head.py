"""The thrifty way through the output head gives the plain loss and the plain gradients."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deltatune.bridges.start_checks import supervised_head
from deltatune.bridges.supervised_head import SupervisedHead
from deltatune.objectives.next_token import NextToken
from tests.lean_models import causal

VOCABULARY, WIDTH, ROWS = 64, 32, 3


def batch_of() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = -100
    labels[1, 7:9] = -100
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    labels[1, 10:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


def gradients(model: nn.Module, total: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    (total / 11).backward()  # as by a denominator
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert found
    return found


def head_of(model: nn.Module) -> SupervisedHead:
    """Return the verified head, with chunks of three rows."""
    head, why_not = supervised_head(model, NextToken())
    assert head is not None, why_not
    head.rows_at_a_time = ROWS
    return head


def assert_equal_to_plain(model: nn.Module, tolerance: float = 1e-5) -> None:
    batch = batch_of()
    plain = NextToken().total(model(**inputs_of(batch)), batch)
    wanted = gradients(model, plain)
    total = head_of(model).total(model, inputs_of(batch), batch, NextToken())
    given = gradients(model, total)
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=0)
    assert given.keys() == wanted.keys()
    # Some gradients are zero by symmetry (a key's bias) and hold nothing but rounding.
    floor = 1e-6 * max(float(gradient.norm()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        apart = float((given[name] - gradient).norm())
        assert apart <= tolerance * float(gradient.norm()) + floor, name
        assert given[name].dtype == gradient.dtype


@pytest.mark.parametrize(
    "family",
    ["llama", "tied llama", "gemma2", "granite", "cohere", "phi", "gpt_neox", "gpt2", "opt"],
)
def test_supervised_head_equals_the_plain_way_when_all_trains(family: str) -> None:
    assert_equal_to_plain(causal(family))


@pytest.mark.parametrize("family", ["llama", "tied llama", "gemma2"])
def test_supervised_head_equals_the_plain_way_when_only_the_body_trains(family: str) -> None:
    model = causal(family).requires_grad_(False)
    model.get_decoder().layers.requires_grad_(True)
    assert_equal_to_plain(model)


def test_supervised_head_equals_the_plain_way_when_only_the_head_trains() -> None:
    model = causal("phi").requires_grad_(False)
    model.get_output_embeddings().requires_grad_(True)
    assert_equal_to_plain(model)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    ],
)
def test_supervised_head_equals_the_plain_way_with_adapters_on_it(options: dict[str, Any]) -> None:
    model = peft.get_peft_model(causal("llama"), peft.LoraConfig(r=2, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    assert_equal_to_plain(model)


def test_supervised_head_equals_the_plain_way_when_a_wrapper_adds_to_losses() -> None:
    # peft's AdaLoRA adds its regularizer to whatever a model calls its loss; ours is not its.
    config = peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, init_r=3, target_r=2)
    model = peft.get_peft_model(causal("llama"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter.fill_(0.05)
    assert_equal_to_plain(model)


def test_supervised_head_equals_the_plain_way_in_bfloat16() -> None:
    model = causal("llama").to(torch.bfloat16)
    batch = batch_of()
    wanted = gradients(model, NextToken().total(model(**inputs_of(batch)), batch))
    given = gradients(model, head_of(model).total(model, inputs_of(batch), batch, NextToken()))
    for name, gradient in wanted.items():
        left, right = gradient.float().ravel(), given[name].float().ravel()
        # three digits in each of some ten products on the way
        assert torch.cosine_similarity(left, right, dim=0) > 0.999, name


def test_frozen_head_takes_two_products_of_the_supervised_rows_in_bounded_chunks() -> None:
    model = causal("llama").requires_grad_(False)
    model.get_decoder().layers.requires_grad_(True)
    head, batch, seen = head_of(model), batch_of(), []
    model.get_output_embeddings().register_forward_hook(
        lambda module, given, output: seen.append(output.shape[:-1].numel())
    )

    def flops(step: Any) -> int:
        counter = FlopCounterMode(display=False)
        with counter:
            step()
        return int(counter.get_total_flops())

    def body() -> None:
        model.get_decoder()(**inputs_of(batch))[0].sum().backward()

    def whole() -> None:
        head.total(model, inputs_of(batch), batch, NextToken()).backward()

    supervised = int(NextToken().count(batch))
    spent = flops(whole) - flops(body)
    one_dummy_row = 2 * WIDTH * VOCABULARY
    assert spent == 2 * supervised * 2 * WIDTH * VOCABULARY + one_dummy_row
    assert max(seen) <= ROWS
    assert sum(seen) == supervised + 1


def test_head_is_never_given_a_slice_for_which_its_weight_would_be_copied() -> None:
    # PyTorch multiplies rows whose strides are not those of a whole tensor by way of a copy of the
    # weight: in bfloat16 that took longer than the rest of the head together.
    model = causal("llama")
    head, seen = head_of(model), []
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0]))
    head.total(model, inputs_of(batch_of()), batch_of(), NextToken())
    assert len(seen) > 1
    assert all(rows.stride() == torch.empty(rows.shape).stride() for rows in seen)


def test_a_batch_without_supervision_gives_a_zero_that_can_go_backward() -> None:
    model, batch = causal("llama"), batch_of()
    batch["labels"][:] = -100
    total = head_of(model).total(model, inputs_of(batch), batch, NextToken())
    total.backward()
    assert float(total.detach()) == 0.0


def test_a_batch_without_supervision_gives_everything_in_the_head_a_gradient() -> None:
    # Data parallelism waits for one of each parameter, in every process.
    options = {"target_modules": ["q_proj", "lm_head"]}
    model = peft.get_peft_model(causal("llama"), peft.LoraConfig(r=2, **options))
    batch = batch_of()
    batch["labels"][:] = -100
    head_of(model).total(model, inputs_of(batch), batch, NextToken()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_model_is_as_before_after_an_error_within_it() -> None:
    model, batch = causal("llama"), batch_of()
    head = head_of(model)
    with pytest.raises(IndexError):
        head.total(model, {"input_ids": batch["input_ids"] + VOCABULARY}, batch, NextToken())
    assert "forward" not in vars(model)
    assert not model.base_model._forward_hooks


def test_a_head_that_mixes_places_is_found_out() -> None:
    model = causal("llama")
    forward = model.forward

    def mixing(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = output.logits.cumsum(dim=1)
        return output

    model.forward = mixing
    head, why_not = supervised_head(model, NextToken())
    assert head is None
    assert "its logits differ" in why_not


def test_score_is_cross_entropy_and_its_gradient() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = torch.tensor([0, 6, 3, 3, 1])
    plain = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    total, slope = NextToken().score(logits.detach(), wanted)
    torch.testing.assert_close(total, plain.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(plain, logits)[0])

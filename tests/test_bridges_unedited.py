"""An adapter that edits its base is refused when it is put in."""

from __future__ import annotations

import peft
import pytest
import torch

from deltatune.bridges.unedited import unedited
from deltatune.errors import NotComposable
from tests.models import tiny
from tests.training import lora


def test_unedited_lets_an_adapter_in_that_leaves_the_base() -> None:
    base = tiny("llama", "causal_lm")
    with unedited(base, "LoRA"):
        assert isinstance(lora(base), peft.PeftModel)


def test_unedited_refuses_a_start_that_is_taken_out_of_the_base() -> None:
    # Residuals of an SVD replace the base weights of query and value, in both layers.
    with (
        pytest.raises(NotComposable, match=r"^PiSSA changes base weights \(.*q_proj.* and 1 more"),
        unedited(base := tiny("llama", "causal_lm"), "PiSSA"),
    ):
        lora(base, init_lora_weights="pissa")


def test_unedited_finds_a_single_entry() -> None:
    base = tiny("llama", "causal_lm")
    with (
        pytest.raises(NotComposable, match=r"\(model\.norm\.weight\)"),
        unedited(base, "this"),
        torch.no_grad(),
    ):
        base.get_parameter("model.norm.weight")[3] += 1e-6


def test_unedited_finds_a_parameter_that_another_has_replaced() -> None:
    base = tiny("llama", "causal_lm")
    with (
        pytest.raises(NotComposable, match=r"\(model\.norm\.weight\)"),
        unedited(base, "this"),
    ):
        base.model.norm.weight = torch.nn.Parameter(base.model.norm.weight.detach() + 1)

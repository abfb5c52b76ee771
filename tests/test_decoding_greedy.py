"""Greedy answers: what a plain loop over whole sequences gives, in batches and with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from deltatune.decoding.greedy import greedy
from tests.decoder_models import decoder
from tests.models import tiny
from tests.training import PEFT_ASKS_OLD_NAME, lora

PROMPTS = ((3, 4, 5, 6, 7, 8, 9), (10,), (11, 12, 13), (14, 15, 16), (20, 21, 22, 23, 24))


def by_hand(model: Any, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Take the likeliest token of a whole forward pass, again and again."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new_tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def answered(model: Any, **options: Any) -> list[list[int]]:
    given: dict[str, Any] = {"new_tokens": 5, "end_ids": (63,), "pad_id": 0, "batch_size": 2}
    return [one.ids for one in greedy(model, PROMPTS, **{**given, **options})]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_is_the_plain_loop_though_batches_are_padded(name: str) -> None:
    model = tiny(name, "causal_lm")
    assert answered(model, end_ids=()) == [by_hand(model, prompt, 5) for prompt in PROMPTS]
    assert answered(model, end_ids=(), batch_size=5) == answered(model, end_ids=(), batch_size=1)


@pytest.mark.parametrize("name", ["mamba", "jamba", "minimax"])
def test_greedy_keeps_padding_out_of_a_recurrent_state(name: str) -> None:
    model = decoder(name, causal=True)
    wanted = [by_hand(model, prompt, 4) for prompt in PROMPTS]
    assert answered(model, new_tokens=4, end_ids=(), batch_size=5) == wanted


@PEFT_ASKS_OLD_NAME
def test_greedy_answers_with_the_adapter_on_or_off() -> None:
    base = tiny("llama", "causal_lm")
    plain = answered(base, end_ids=())
    model = lora(base)
    torch.nn.init.normal_(
        model.base_model.model.model.layers[0].self_attn.v_proj.lora_B.default.weight,
        generator=torch.Generator().manual_seed(0),
    )
    tuned = answered(model, end_ids=())
    assert tuned != plain
    assert tuned == [by_hand(model, prompt, 5) for prompt in PROMPTS]
    with model.disable_adapter():
        assert answered(model, end_ids=()) == plain


def test_greedy_ends_an_answer_before_its_end_token() -> None:
    model = tiny("llama", "causal_lm")
    whole = answered(model, end_ids=())
    end = whole[0][2]
    ended = [row[: row.index(end)] if end in row else row for row in whole]
    assert answered(model, end_ids=(end,)) == ended
    assert len(ended[0]) <= 2


def test_greedy_tells_the_probability_of_an_answer_and_its_end() -> None:
    model = tiny("llama", "causal_lm")
    prompt, end = PROMPTS[2], by_hand(model, PROMPTS[2], 3)[2]
    ids = [*prompt, *by_hand(model, prompt, 3)]
    with torch.no_grad():
        likely = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)  # (seq, vocab)
    steps = [float(likely[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
    options: dict[str, Any] = {"new_tokens": 5, "pad_id": 0}
    ended = greedy(model, PROMPTS, end_ids=(end,), **options)[2]
    first = ids[len(prompt) :].index(end)  # the random model may say it before the third place
    assert ended.ids == ids[len(prompt) : len(prompt) + first]
    # a cache and padding change the order of sums in float32
    assert ended.log_probability == pytest.approx(sum(steps[: first + 1]), abs=1e-4)
    cut = greedy(model, PROMPTS, end_ids=(), **{**options, "new_tokens": 2})[2]
    assert cut.log_probability == pytest.approx(sum(steps[:2]), abs=1e-4)


def test_greedy_gives_each_prompt_the_room_that_it_has_itself() -> None:
    model = tiny("gpt2", "causal_lm", n_positions=8)  # a position too many is an error of this one
    answers = answered(model, end_ids=(), positions=8)
    # prompts of 7, 1, 3, 3 and 5 tokens, 5 new ones at most
    assert [len(answer) for answer in answers] == [1, 5, 5, 5, 3]
    assert answered(model, end_ids=(), positions=5)[0] == []


def test_greedy_leaves_a_model_s_own_settings_aside_and_as_they_were(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model: Any = tiny("llama", "causal_lm")
    plain = answered(model)
    own = GenerationConfig(repetition_penalty=5.0, do_sample=True, temperature=0.1, max_length=9)
    model.generation_config = own
    state = own.to_dict()
    assert answered(model) == plain
    assert model.generation_config is own
    assert own.to_dict() == state
    assert capfd.readouterr() == ("", "")

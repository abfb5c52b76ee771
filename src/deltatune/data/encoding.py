"""Examples in, tokens with labels out, and the account of what carries loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import datasets
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from deltatune.data.collating import Collator
from deltatune.data.completions import completion_tokens
from deltatune.data.conversations import Conversations
from deltatune.data.loading import Examples
from deltatune.data.supervision import Supervision
from deltatune.data.tallying import Tally, notes_of
from deltatune.data.tasks import TASKS
from deltatune.data.tokens import Columns, Segment, Tokens, end_token, leading_tokens
from deltatune.errors import InputError

__all__ = ["Collator", "Encoded", "encode"]

ROWS_AT_A_TIME = 1000  # one call of the tokenizer; enough for its threads, little enough to hold
SMALLEST_BLOCK = 2  # one token predicts nothing


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Batches in waiting: tokens, or images that become pixels batch by batch.

    Args:
        task: of the examples.
        splits: the splits of the examples, with columns `input_ids`, `token_type_ids` where the
            tokenizer has them, or `image`, and `labels`: a class id, a number, or one id per token
            with -100 where no loss is (not shifted). Row order is kept.
        supervision: what carries loss; call its `check()` before training.
        label_names: of the classes, index = class id.
    """

    task: str
    splits: dict[str, datasets.Dataset]
    supervision: Supervision
    label_names: tuple[str, ...]

    def uniform_loss(self) -> float | None:
        """Return the loss of the predictor that knows nothing, ln C; None without classes."""
        is_classified = TASKS[self.task].answers == "class"
        return math.log(max(len(self.label_names), 2)) if is_classified else None


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    supervise_prompt: bool = False,
) -> Encoded:
    """Tokenise every split.

    A completion ends with the tokenizer's end token, which carries loss; loss lies on completions
    and on what the assistant says, including its end-of-turn token, and nowhere else unless
    `supervise_prompt` asks for it. Plain documents are put one after the other, each closed by the
    end token, and divided into blocks of `max_length`; all of it carries loss. Too long examples
    are cut on the right; one that keeps no token with loss is left out and counted.

    Args:
        examples: from `loading.load`.
        tokenizer: of the model that will be trained.
        max_length: tokens per example at most, from 8 up.
        supervise_prompt: prompts carry loss too.

    Raises:
        InputError: the tokenizer cannot write this task, or `max_length` leaves no room.
    """
    if max_length < 8:
        raise InputError(f"max_length={max_length} is not allowed: give an integer from 8 up")
    encoder = _encoder(examples, tokenizer, max_length, supervise_prompt)
    tables: dict[str, pa.Table] = {}
    counts = {}
    for split, rows in examples.splits.items():
        tally = Tally(tokenizer)
        batches = [pa.table(batch) for batch in encoder(_batches(rows, examples.columns), tally)]
        tables[split] = pa.concat_tables(batches) if batches else pa.table({})
        counts[split] = tally.result()
    supervision = Supervision(
        task=examples.task,
        max_length=max_length,
        splits=counts,
        template=(tokenizer.name_or_path or "this tokenizer") if examples.task == "chat" else "",
        supervises_prompt=supervise_prompt,
    )
    notes = (*examples.notes, *notes_of(supervision, tokenizer))
    return Encoded(
        task=examples.task,
        splits={split: _dataset(table, examples, split) for split, table in tables.items()},
        supervision=dataclasses.replace(supervision, notes=notes),
        label_names=examples.label_names,
    )


Encoder = Callable[[Iterator[Columns], Tally], Iterator[Columns]]


def _encoder(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    supervise_prompt: bool,
) -> Encoder:
    if examples.task in ("classification", "regression"):
        return lambda batches, tally: _labelled(batches, tally, tokenizer, max_length, examples)
    if examples.task == "text":
        return lambda batches, tally: _blocks(batches, tally, tokenizer, max_length)
    if examples.task == "chat":
        chat = Conversations(tokenizer, supervise_prompt=supervise_prompt)
        return lambda batches, tally: _cut(_conversations(batches, chat), tally, max_length)
    separator = examples.separator
    return lambda batches, tally: _cut(
        completion_tokens(batches, tokenizer, separator, supervise_prompt), tally, max_length
    )


def _batches(rows: datasets.Dataset, columns: dict[str, str]) -> Iterator[Columns]:
    table = rows.with_format("arrow")[:]
    for start in range(0, table.num_rows, ROWS_AT_A_TIME):
        part = table.slice(start, ROWS_AT_A_TIME)
        yield {role: part.column(column).to_pylist() for role, column in columns.items()}


def _dataset(table: pa.Table, examples: Examples, split: str) -> datasets.Dataset:
    return datasets.Dataset(table, fingerprint=f"{examples.fingerprint[:12]}{split}encoded")


def _integers(rows: Sequence[Sequence[int]]) -> pa.Array:
    return pa.array(rows, type=pa.list_(pa.int32()))  # half the memory of int64, ids fit


def _labelled(
    batches: Iterator[Columns],
    tally: Tally,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    examples: Examples,
) -> Iterator[Columns]:
    tally.labels.update(dict.fromkeys(examples.label_names, 0))  # fixes the order of the table
    for columns in batches:
        texts = [columns["text"], *([columns["second_text"]] if "second_text" in columns else [])]
        encoded = tokenizer(
            *texts, truncation=True, max_length=max_length, return_attention_mask=False
        )
        lengths = _lengths(encoded["input_ids"], texts, tokenizer, max_length)
        for ids, length, label in zip(encoded["input_ids"], lengths, columns["label"], strict=True):
            tally.see(ids, length)
            tally.counts.update(examples=1, tokens=len(ids), truncated=int(length > len(ids)))
            if examples.label_names:
                tally.labels[examples.label_names[label]] += 1
        arrays = {"input_ids": _integers(encoded["input_ids"])}
        if "token_type_ids" in encoded:
            arrays["token_type_ids"] = _integers(encoded["token_type_ids"])
        yield {**arrays, "labels": columns["label"]}


def _lengths(
    cut: Sequence[Sequence[int]],
    texts: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> list[int]:
    """Return the lengths before cutting; only rows at the limit are tokenised again."""
    lengths = [len(ids) for ids in cut]
    full = [row for row, length in enumerate(lengths) if length >= max_length]
    if full:
        again = tokenizer(
            *([column[row] for row in full] for column in texts),
            return_attention_mask=False,
            verbose=False,
        )
        for row, ids in zip(full, again["input_ids"], strict=True):
            lengths[row] = len(ids)
    return lengths


def _cut(examples: Iterator[Tokens], tally: Tally, max_length: int) -> Iterator[Columns]:
    kept: list[Tokens] = []
    for tokens in examples:
        length = len(tokens.input_ids)
        tally.see(tokens.input_ids, length)
        tally.counts["truncated"] += length > max_length
        short = tokens.cut(max_length)
        if tokens.supervised() and not short.supervised():
            tally.counts["unsupervised"] += 1
            continue
        tally.keep(short)
        kept.append(short)
        if len(kept) == ROWS_AT_A_TIME:
            yield _token_columns(kept)
            kept = []
    if kept:
        yield _token_columns(kept)


def _token_columns(rows: Sequence[Tokens]) -> Columns:
    return {
        "input_ids": _integers([tokens.input_ids for tokens in rows]),
        "labels": _integers([tokens.labels() for tokens in rows]),
    }


def _conversations(batches: Iterator[Columns], chat: Conversations) -> Iterator[Tokens]:
    first_row = 1
    for columns in batches:
        yield from chat.encode(columns["messages"], first_row)
        first_row += len(columns["messages"])


def _blocks(
    batches: Iterator[Columns], tally: Tally, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Columns]:
    leading, end = leading_tokens(tokenizer), end_token(tokenizer)
    waiting: list[int] = []
    for columns in batches:
        encoded = tokenizer(
            columns["text"], add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        for ids in encoded["input_ids"]:
            document = [*leading, *ids, end]
            tally.see(document, len(document))
            waiting += document
        full = len(waiting) // max_length * max_length
        if full:
            yield _block_columns(waiting[:full], tally, max_length)
            waiting = waiting[full:]
    if len(waiting) >= SMALLEST_BLOCK:
        yield _block_columns(waiting, tally, max_length)


def _block_columns(ids: Sequence[int], tally: Tally, max_length: int) -> Columns:
    blocks = []
    for start in range(0, len(ids), max_length):
        block = list(ids[start : start + max_length])
        tokens = Tokens(input_ids=block, segments=[Segment("text", 0, len(block), True)], turns=[])
        tally.keep(tokens)
        blocks.append(tokens)
    return _token_columns(blocks)

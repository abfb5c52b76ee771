"""One example as tokens with the role of every stretch and what of it carries loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.errors import InputError

__all__ = [
    "IGNORED",
    "Columns",
    "Segment",
    "Tokens",
    "Turn",
    "doubled_token",
    "end_token",
    "leading_tokens",
]

IGNORED = -100  # the label of a token without loss, as torch's cross-entropy has it

Columns = dict[str, list[Any]]  # role or model input -> the values of some rows


class Segment(NamedTuple):
    """A stretch of tokens `[start, end)` of one role."""

    role: str
    start: int
    end: int
    supervised: bool


class Turn(NamedTuple):
    """What the model has to say: tokens `[start, end)`, and the id that teaches it to stop."""

    start: int
    end: int
    end_id: int | None


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One example.

    Args:
        input_ids: token ids.
        segments: cover all tokens, in order.
        turns: what the model has to say, in order; empty for plain text.
    """

    input_ids: list[int]
    segments: list[Segment]
    turns: list[Turn]

    def cut(self, max_length: int) -> Tokens:
        """Keep the first `max_length` tokens; a turn whose end is cut off is no turn any more."""
        if len(self.input_ids) <= max_length:
            return self
        segments = [
            segment._replace(end=min(segment.end, max_length))
            for segment in self.segments
            if segment.start < max_length
        ]
        turns = [turn for turn in self.turns if turn.end <= max_length]
        return Tokens(input_ids=self.input_ids[:max_length], segments=segments, turns=turns)

    def labels(self) -> list[int]:
        """Return the ids of the tokens that carry loss, -100 for the others, not shifted."""
        labels = [IGNORED] * len(self.input_ids)
        for segment in self.segments:
            if segment.supervised:
                labels[segment.start : segment.end] = self.input_ids[segment.start : segment.end]
        return labels

    def supervised(self) -> int:
        """Return the number of tokens that carry loss."""
        return sum(segment.end - segment.start for segment in self.segments if segment.supervised)


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the start token that the tokenizer puts before every text, or nothing."""
    frame = list(tokenizer("")["input_ids"])
    starts = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    return frame[:1] if frame and frame[0] in starts else []


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the end-of-sequence id.

    Raises:
        InputError: the tokenizer has none, so nothing could teach the model to stop.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} has no end token, so the model would never "
            "learn to stop: set tokenizer.eos_token, or take a model that generates text"
        )
    return int(tokenizer.eos_token_id)


def doubled_token(input_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that opens or closes the example twice, or None.

    Only the two ends count: between two texts RoBERTa puts its separator twice by design.
    """
    if len(input_ids) < 2:
        return None
    ends = {
        tokenizer.bos_token_id,
        tokenizer.cls_token_id,
        tokenizer.eos_token_id,
        tokenizer.sep_token_id,
    }
    for outer, inner in ((0, 1), (-1, -2)):
        if input_ids[outer] == input_ids[inner] and input_ids[outer] in ends:
            return int(input_ids[outer])
    return None

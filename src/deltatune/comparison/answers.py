"""Generated answers to the prompts of a split, scored one by one beside their loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from deltatune.comparison.evaluation import Evaluation, inference
from deltatune.data.collating import Collator
from deltatune.data.completions import completion_tokens
from deltatune.data.loading import Examples
from deltatune.data.tokens import Tokens, end_token
from deltatune.data.yardstick import Yardstick
from deltatune.decoding.greedy import greedy
from deltatune.errors import InputError

__all__ = ["ANSWERED_AT_MOST", "Answer", "Questions", "questions"]

ANSWERED_AT_MOST = 200  # generating costs a pass for every token
WITHOUT_ROOM_AT_MOST = 0.1  # of the prompts; with more the number would say little of the model


class Answer(NamedTuple):
    """What a model answers to one prompt.

    Attributes:
        text: without prompt and end token.
        confidence: the probability that the model gives to the whole answer, its end included.
    """

    text: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The prompts of one split, and how answers to them are judged.

    Args:
        yardstick: with its score.
        split: name of the split.
        rows: as the score wants them, one for each prompt.
        prompts: token ids, as training has them before the completion.
        have_room: whether prompt and known answer fit into the model's positions.
        have_loss: whether the encoded split holds the row; it leaves out rows whose prompt alone
            fills `max_length`.
        new_tokens: the most that are generated for one prompt.
        positions: of the model; None where it has no bound.
        end_ids: tokens that end an answer.
        tokenizer: of the model.
        notes: what a reader of the scores should know.
    """

    yardstick: Yardstick
    split: str
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    prompts: Sequence[Sequence[int]] = field(repr=False)
    have_room: Sequence[bool] = field(repr=False)
    have_loss: Sequence[bool] = field(repr=False)
    new_tokens: int
    positions: int | None
    end_ids: frozenset[int]
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...]

    def answers(self, model: nn.Module, *, batch_size: int, autocast: bool = False) -> list[Answer]:
        """Return what a model generates.

        Args:
            model: a causal language model, left as it was.
            batch_size: prompts at a time.
            autocast: whether to compute in bfloat16.
        """
        with inference(model, autocast):
            found = greedy(
                model,
                self.prompts,
                new_tokens=self.new_tokens,
                end_ids=self.end_ids,
                pad_id=Collator(self.tokenizer).pad_token_id,
                batch_size=batch_size,
                positions=self.positions,
            )
        return [
            Answer(self._text(prompt, one.ids), math.exp(one.log_probability))
            for prompt, one in zip(self.prompts, found, strict=True)
        ]

    def _text(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        """Decode behind the prompt: some tokenizers drop the space that opens a text."""
        before, whole = (
            str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            for ids in (list(prompt), [*prompt, *answer])
        )
        return whole[len(before) :]

    def scored(self, scores: Evaluation, answers: Sequence[Answer]) -> Evaluation:
        """Return an evaluation by loss with the scores of answers in it.

        The first items get `score` in [0, 1], `generated` and `confidence`. A row without room is 0
        and has no confidence (None). A row that the encoded split leaves out has no tokens of its
        own, and so no part in the loss.

        Args:
            scores: of the same split and model.
            answers: from `answers`.
        """
        assert self.yardstick.score is not None, "there are questions only with a score"
        waiting = iter(scores.items)
        items: list[Mapping[str, Any]] = []
        for row, (text, confidence), has_room, has_loss in zip(
            self.rows, answers, self.have_room, self.have_loss, strict=True
        ):
            item = next(waiting) if has_loss else {"loss": 0.0, "tokens": 0}
            added = {
                "score": float(self.yardstick.score(text, row)) if has_room else 0.0,
                "generated": text,
                "confidence": confidence if has_room else None,
            }
            items.append({**item, **added})
        mean = sum(item["score"] for item in items) / len(items)
        metric = self.yardstick.metric
        return dataclasses.replace(
            scores,
            items=(*items, *waiting),
            metrics={metric: mean, "scored_answers": float(len(items)), **scores.metrics},
        )


def questions(
    examples: Examples,
    yardstick: Yardstick,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str,
    max_length: int,
    at_most: int = ANSWERED_AT_MOST,
) -> Questions:
    """Make the questions of a split, each with the very tokens that training has before the answer.

    Args:
        examples: of completions.
        yardstick: with a score.
        model: gives the bound of positions, and the tokens that end its texts beside the
            tokenizer's.
        tokenizer: of the model.
        split: name of the split that is scored.
        max_length: with which the examples were encoded.
        at_most: only the first so many rows.

    Raises:
        InputError: more than a tenth of the prompts leave no room for their answer.
    """
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    number = min(examples.splits[split].num_rows, at_most)
    tokens = _tokens(examples, tokenizer, split, number)
    turns = [row.turns[0] for row in tokens]
    longest = max(turn.end - turn.start for turn in turns)  # the end token included
    have_room = [positions is None or turn.end - 1 <= positions for turn in turns]
    note = _checked_room(have_room, positions, split)
    present = examples.splits[split].num_rows
    shown = f"the first {number} of {present}" if number < present else f"all {number}"
    return Questions(
        yardstick=yardstick,
        split=split,
        rows=[yardstick.rows[split][i] for i in range(number)],
        prompts=[row.input_ids[: turn.start] for row, turn in zip(tokens, turns, strict=True)],
        have_room=have_room,
        have_loss=[_has_loss(row, max_length) for row in tokens],
        new_tokens=max(yardstick.answer_tokens, math.ceil(longest * yardstick.answer_room)),
        positions=positions,
        end_ids=frozenset({end_token(tokenizer), *_own_ends(model)}),
        tokenizer=tokenizer,
        notes=(f"{yardstick.metric} is of answers generated to {shown} examples of {split}", *note),
    )


def _tokens(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, split: str, number: int
) -> list[Tokens]:
    rows = examples.splits[split][:number]
    columns = {role: list(rows[column]) for role, column in examples.columns.items()}
    return list(completion_tokens(iter([columns]), tokenizer, examples.separator, False))


def _has_loss(tokens: Tokens, max_length: int) -> bool:
    return tokens.cut(max_length).supervised() > 0


def _checked_room(have_room: Sequence[bool], positions: int | None, split: str) -> tuple[str, ...]:
    lacking = len(have_room) - sum(have_room)
    if not lacking:
        return ()
    what = (
        f"{lacking} of {len(have_room)} prompts of {split} leave no room for their answer within "
        f"the {positions} positions of the model"
    )
    if lacking > WITHOUT_ROOM_AT_MOST * len(have_room):
        raise InputError(
            f"{what}: give shorter prompts or another model, or score by the loss with "
            f"--metric loss (metric='loss')"
        )
    return (f"{what} and count as wrong",)


def _own_ends(model: Any) -> list[int]:
    """Return the tokens that end the base's own texts, such as the end of a turn."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return []
    return [int(ends)] if isinstance(ends, int) else [int(end) for end in ends]

"""Chat messages in, tokens out, by the tokenizer's own template; what the assistant says is found.

A template with `{% generation %}` markers tells it itself. Without them the conversation is
rendered turn by turn: what a turn adds to the text before it is that turn.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from deltatune.data.tokens import Segment, Tokens, Turn
from deltatune.errors import InputError

__all__ = ["Conversations"]

MARKER = re.compile(r"\{%-?\s*generation\b")
Message = dict[str, Any]


class Span(NamedTuple):
    """Characters `[start, end)` of a rendered conversation, and whose words they are."""

    start: int
    end: int
    role: str


class Conversations:
    """Tokenises conversations with one tokenizer's template.

    Args:
        tokenizer: a fast one (its tokens know their characters) with a chat template.
        supervise_prompt: every token carries loss, not only what the assistant says.

    Raises:
        InputError: the tokenizer has no template, or is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, supervise_prompt: bool) -> None:
        """Read what the template and the special tokens say."""
        self.name = str(tokenizer.name_or_path or "this tokenizer")
        if not tokenizer.chat_template:
            raise InputError(
                f"tokenizer {self.name!r} has no chat template, so messages cannot be written as "
                "text: take the model's chat or instruct version, set tokenizer.chat_template, or "
                "give prompt and completion columns"
            )
        if not tokenizer.is_fast:
            raise InputError(
                f"tokenizer {self.name!r} is not a fast one, so what the assistant says cannot be "
                "found in it: load it with AutoTokenizer, or give prompt and completion columns"
            )
        self.tokenizer = tokenizer
        self.supervise_prompt = supervise_prompt
        template = tokenizer.get_chat_template()
        self.has_markers = MARKER.search(template) is not None
        known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self.end_ids = frozenset(known)
        longest_first = sorted(map(str, tokenizer.convert_ids_to_tokens(sorted(known))), key=len)[
            ::-1
        ]
        self.end_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(
        self, conversations: Sequence[Sequence[Message]], first_row: int
    ) -> Iterator[Tokens]:
        """Yield the tokens of each conversation.

        Args:
            conversations: turns with `role` and `content`; nulls are left out.
            first_row: number of the first conversation, for errors.

        Raises:
            InputError: the template refuses a conversation, or rewrites earlier turns.
        """
        cleaned = [[_without_nulls(turn) for turn in turns] for turns in conversations]
        rows = range(first_row, first_row + len(cleaned))
        texts = [self._render(turns, row) for turns, row in zip(cleaned, rows, strict=True)]
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for place, (turns, row) in enumerate(zip(cleaned, rows, strict=True)):
            ids = list(encoded["input_ids"][place])
            offsets = encoded["offset_mapping"][place]
            spoken = self._spoken(turns, texts[place], ids, offsets, row)
            words = _find_words(turns, texts[place])
            yield self._tokens(ids, [_role_at(words, *offset) for offset in offsets], spoken)

    def _render(self, turns: Sequence[Message], row: int, *, opens: bool = False) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(turns), tokenize=False, add_generation_prompt=opens
                )
            )
        except (TemplateError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"row {row}: the chat template of {self.name!r} refuses the messages ({reason}): "
                "change their roles or order"
            ) from error

    def _spoken(
        self,
        turns: Sequence[Message],
        text: str,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        row: int,
    ) -> list[tuple[int, int]]:
        """Return the token ranges that the assistant has to say."""
        if self.has_markers:
            return self._marked(turns, ids, row)
        ranges = []
        for span in self._added(turns, text, row):
            inside = [i for i, (a, b) in enumerate(offsets) if a < span.end and b > span.start]
            if inside:
                ranges.append((inside[0], self._without_blank_tail(ids, inside[0], inside[-1] + 1)))
        return ranges

    def _marked(
        self, turns: Sequence[Message], ids: Sequence[int], row: int
    ) -> list[tuple[int, int]]:
        encoded: Any = self.tokenizer.apply_chat_template(
            list(turns), return_dict=True, return_assistant_tokens_mask=True
        )
        if list(encoded["input_ids"]) != list(ids):
            raise InputError(
                f"row {row}: the chat template of {self.name!r} gives other text each time it is "
                "rendered: give the tokenizer a template without dates or random parts"
            )
        ranges, start = [], 0
        for is_spoken, run in groupby(encoded["assistant_masks"]):
            end = start + len(list(run))
            if is_spoken:
                ranges.append((start, end))
            start = end
        return ranges

    def _added(self, turns: Sequence[Message], text: str, row: int) -> Iterator[Span]:
        """Yield the characters that each assistant turn adds to the turns before it."""
        for place, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = (self._render(turns[:place], row, opens=opens) for opens in (True, False))
            start = next((len(prefix) for prefix in before if text.startswith(prefix)), None)
            end = None if start is None else self._end(turns[: place + 1], text, start, row)
            if start is None or end is None:
                raise InputError(
                    f"row {row}: the chat template of {self.name!r} rewrites earlier turns "
                    f"(message {place + 1}), so what the assistant says cannot be found: give the "
                    "tokenizer a template with {% generation %} markers"
                )
            yield Span(start, end, "assistant")

    def _end(self, turns: Sequence[Message], text: str, start: int, row: int) -> int | None:
        until = self._render(turns, row)
        if text.startswith(until):
            return len(until)
        # some templates show the last turn differently (its reasoning); then the words are
        # looked for, and the turn ends with the first special token after them
        words = turns[-1]["content"].strip()
        at = text.find(words, start)
        if not words or at < 0:
            return None
        terminator = self.end_pattern.search(text, at + len(words))
        return terminator.end() if terminator else None

    def _without_blank_tail(self, ids: Sequence[int], start: int, end: int) -> int:
        """Stop at the end token: the model is never asked for the line break that follows it."""
        last = end
        while last > start and ids[last - 1] not in self.end_ids:
            if str(self.tokenizer.decode([ids[last - 1]])).strip():
                return end
            last -= 1
        return last if last > start else end

    def _tokens(
        self, ids: list[int], roles: list[str], spoken: Sequence[tuple[int, int]]
    ) -> Tokens:
        is_spoken = [False] * len(ids)
        turns = []
        for start, end in spoken:
            is_spoken[start:end] = [True] * (end - start)
            bare_end = self._without_blank_tail(ids, start, end)
            last = ids[bare_end - 1]
            turns.append(Turn(start, end, end_id=last if last in self.end_ids else None))
        marks = [
            ("assistant" if said and role == "template" else role, said or self.supervise_prompt)
            for role, said in zip(roles, is_spoken, strict=True)
        ]
        segments, start = [], 0
        for (role, supervised), run in groupby(marks):
            end = start + len(list(run))
            segments.append(Segment(role, start, end, supervised))
            start = end
        return Tokens(input_ids=ids, segments=segments, turns=turns)


def _without_nulls(turn: Message) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if value is not None}


def _find_words(turns: Sequence[Message], text: str) -> list[Span]:
    """Find each turn's words in the rendered text; what is in no turn belongs to the template."""
    spans, position = [], 0
    for turn in turns:
        words = turn["content"].strip()
        start = text.find(words, position) if words else -1
        if start >= 0:
            position = start + len(words)
            role = "system" if turn["role"] == "developer" else turn["role"]
            spans.append(Span(start, position, role))
    return spans


def _role_at(spans: Sequence[Span], start: int, end: int) -> str:
    place = bisect_right(spans, end - 1, key=lambda span: span.start) - 1
    return spans[place].role if place >= 0 and spans[place].end > start else "template"

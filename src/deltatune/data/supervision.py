"""The supervision gate: what carries loss, counted, shown, and refused where it cannot be meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table

from deltatune.errors import InputError

__all__ = ["MOST_UNSUPERVISED", "RoleCount", "SplitSupervision", "Supervision"]

MOST_UNSUPERVISED = 0.01  # fraction of examples that may be left out because the cut took all loss


@dataclass(frozen=True, kw_only=True)
class RoleCount:
    """Tokens of one role, and how many of them carry loss."""

    tokens: int = 0
    supervised: int = 0


@dataclass(frozen=True, kw_only=True)
class SplitSupervision:
    """Counts over one split, after cutting to `max_length`.

    Args:
        examples: rows that can be trained on.
        tokens: in all of them.
        supervised_tokens: that carry loss; 0 for labelled tasks, where each example carries one.
        roles: role -> its counts; of prompt, completion, system, user, assistant, template, text.
        longest: tokens of the longest example before cutting.
        truncated: examples that were cut.
        unsupervised: examples left out because cutting took every token that carries loss.
        turns: completions and assistant turns that were not cut off.
        unterminated_turns: of these, those that do not teach the model to stop.
        end_tokens: what turns end with -> number of turns.
        doubled: examples that open or close with the same special token twice.
        doubled_token: that token, as text.
        doubled_row: number of the first such example, from 1; 0 if there is none.
        labels: class name -> number of examples; empty for other tasks.
    """

    examples: int
    tokens: int
    supervised_tokens: int = 0
    roles: Mapping[str, RoleCount] = field(default_factory=dict)
    longest: int = 0
    truncated: int = 0
    unsupervised: int = 0
    turns: int = 0
    unterminated_turns: int = 0
    end_tokens: Mapping[str, int] = field(default_factory=dict)
    doubled: int = 0
    doubled_token: str = ""
    doubled_row: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def supervised_share(self) -> float | None:
        """Fraction of tokens that carry loss, in [0, 1]; None for labelled tasks."""
        if not self.roles or not self.tokens:
            return None
        return self.supervised_tokens / self.tokens


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What carries loss in every split.

    Args:
        task: of the examples.
        max_length: tokens per example at most; 0 where examples are images, which are never cut.
        splits: split -> counts.
        template: whose chat template made the tokens; empty for other tasks.
        supervises_prompt: whether the user asked for loss on prompts too.
        notes: what the user may want to act on.
    """

    task: str
    max_length: int
    splits: Mapping[str, SplitSupervision]
    template: str = ""
    supervises_prompt: bool = False
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Stop where the wrong tokens would be trained.

        Raises:
            InputError: nothing is supervised, everything is although there are prompts, ends of
                turns are not learned, special tokens are doubled, or more than
                `MOST_UNSUPERVISED` of the examples lost all their loss to `max_length`.
        """
        for split, counts in self.splits.items():
            self._check_cut(split, counts)
            self._check_doubled(split, counts)
            self._check_share(split, counts)
            self._check_ends(split, counts)

    def _check_cut(self, split: str, counts: SplitSupervision) -> None:
        total = counts.examples + counts.unsupervised
        if counts.unsupervised > MOST_UNSUPERVISED * total:
            raise InputError(
                f"{counts.unsupervised} of {total} {split} examples have no supervised token left "
                f"at max_length={self.max_length}: raise it (the longest needs {counts.longest}) "
                "or shorten the prompts"
            )

    def _check_doubled(self, split: str, counts: SplitSupervision) -> None:
        if counts.doubled:
            raise InputError(
                f"{counts.doubled} {split} examples (the first is row {counts.doubled_row}) open "
                f"or close with {counts.doubled_token!r} twice: take it out of the data, the "
                "tokenizer or template adds its own"
            )

    def _check_share(self, split: str, counts: SplitSupervision) -> None:
        if counts.supervised_share == 0:
            advice = self._cause("mark what the assistant says with {% generation %} in")
            raise InputError(
                f"no token of {split} carries loss, nothing would be learned: {advice}"
            )
        has_prompt = set(counts.roles) - {"text", "completion", "assistant"}
        if counts.supervised_share == 1 and has_prompt and not self.supervises_prompt:
            advice = self._cause("narrow the {% generation %} markers of")
            raise InputError(
                f"every token of {split} carries loss, prompts too: {advice}, "
                "or ask for it with supervise_prompt"
            )

    def _check_ends(self, split: str, counts: SplitSupervision) -> None:
        if counts.unterminated_turns:
            advice = self._cause("end assistant turns with one, inside the generation markers, in")
            raise InputError(
                f"{counts.unterminated_turns} of {counts.turns} turns of {split} end without a "
                f"supervised end-of-turn token, so the model would not learn to stop: {advice}"
            )

    def _cause(self, advice: str) -> str:
        if not self.template:
            return "check the columns"
        return f"{advice} the chat template of {self.template!r}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they are written to the run folder."""
        plain = dataclasses.asdict(self)
        for split, counts in self.splits.items():
            plain["splits"][split]["supervised_share"] = counts.supervised_share
        plain["notes"] = list(self.notes)
        return plain

    def table(self) -> Table:
        """Show the counts: per role for token tasks, per class for labelled ones."""
        is_labelled = not any(counts.roles for counts in self.splits.values())
        title = f"supervision at max_length {self.max_length}" if self.max_length else "supervision"
        table = Table(title=title, title_justify="left")
        names = ("class", "examples", "share") if is_labelled else ("role", "tokens", "carry loss")
        lengths = ("cut", "longest") if self.max_length else ()
        for heading in ("split", "examples", *lengths, *names):
            is_text = heading in ("split", names[0])
            justify: Literal["left", "right"] = "left" if is_text else "right"
            table.add_column(heading, justify=justify, no_wrap=heading == "split")
        for split, counts in self.splits.items():
            numbers = (counts.examples, counts.truncated, counts.longest)[: 1 + len(lengths)]
            head = [split, *(f"{number:,}" for number in numbers)]
            for row in _class_rows(counts) if is_labelled else _role_rows(counts):
                table.add_row(*head, *row)
                head = [""] * len(head)
            table.add_section()
        return table


def _role_rows(counts: SplitSupervision) -> list[tuple[str, str, str]]:
    rows = [("all", RoleCount(tokens=counts.tokens, supervised=counts.supervised_tokens))]
    rows += list(counts.roles.items())
    return [
        (role, f"{count.tokens:,}", _percent(count.supervised, count.tokens))
        for role, count in rows
    ]


def _class_rows(counts: SplitSupervision) -> list[tuple[str, str, str]]:
    rows = [
        (name, f"{count:,}", _percent(count, counts.examples))
        for name, count in counts.labels.items()
    ]
    return rows or [("a number", f"{counts.examples:,}", _percent(1, 1))]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"

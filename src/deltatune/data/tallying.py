"""Counts what goes by while examples become tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from deltatune.data.supervision import RoleCount, SplitSupervision, Supervision
from deltatune.data.tokens import Tokens, doubled_token

__all__ = ["Tally", "missing_labels", "notes_of"]


class Tally:
    """The running counts of one split.

    Args:
        tokenizer: names the special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Start at zero."""
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self.role_tokens: Counter[str] = Counter()
        self.role_supervised: Counter[str] = Counter()
        self.ends: Counter[int | None] = Counter()
        self.labels: Counter[str] = Counter()
        self.seen = 0
        self.longest = 0
        self.doubled_token = ""
        self.doubled_row = 0

    def see(self, input_ids: Sequence[int], length: int) -> None:
        """Count one row as it came: its length and its ends.

        Args:
            input_ids: of the row; may be cut already.
            length: tokens before cutting.
        """
        self.seen += 1
        self.longest = max(self.longest, length)
        doubled = doubled_token(input_ids, self.tokenizer)
        if doubled is not None:
            self.counts["doubled"] += 1
            if not self.doubled_row:
                self.doubled_row = self.seen
                self.doubled_token = str(self.tokenizer.convert_ids_to_tokens(doubled))

    def keep(self, tokens: Tokens) -> None:
        """Count one example that will be trained on, after cutting."""
        self.counts["examples"] += 1
        self.counts["tokens"] += len(tokens.input_ids)
        for segment in tokens.segments:
            size = segment.end - segment.start
            self.role_tokens[segment.role] += size
            self.role_supervised[segment.role] += size * segment.supervised
        self.counts["turns"] += len(tokens.turns)
        self.ends.update(turn.end_id for turn in tokens.turns)

    def result(self) -> SplitSupervision:
        """Return the counts of everything seen so far."""
        roles = {
            role: RoleCount(tokens=self.role_tokens[role], supervised=self.role_supervised[role])
            for role in sorted(self.role_tokens)
        }
        return SplitSupervision(
            examples=self.counts["examples"],
            tokens=self.counts["tokens"],
            supervised_tokens=self.role_supervised.total(),
            roles=roles,
            longest=self.longest,
            truncated=self.counts["truncated"],
            unsupervised=self.counts["unsupervised"],
            turns=self.counts["turns"],
            unterminated_turns=self.ends[None],
            end_tokens={
                str(self.tokenizer.convert_ids_to_tokens(token)): count
                for token, count in self.ends.items()
                if token is not None
            },
            doubled=self.counts["doubled"],
            doubled_token=self.doubled_token,
            doubled_row=self.doubled_row,
            labels=dict(self.labels),
        )


def notes_of(supervision: Supervision, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what the user may want to act on."""
    notes = []
    for split, counts in supervision.splits.items():
        if counts.truncated:
            notes.append(
                f"{counts.truncated} of {counts.examples + counts.unsupervised} {split} examples "
                f"are cut at max_length={supervision.max_length}; the longest has {counts.longest}"
            )
        if counts.unsupervised:
            notes.append(
                f"{counts.unsupervised} {split} examples are left out: the cut took all their loss"
            )
        missing = missing_labels(supervision.splits["train"].labels, counts.labels)
        if missing:
            notes.append(f"{split} never shows {', '.join(map(repr, missing))}")
    others = sorted(set(supervision.splits["train"].end_tokens) - {tokenizer.eos_token})
    if others:
        notes.append(
            f"turns end with {', '.join(map(repr, others))}, the tokenizer's end token is "
            f"{tokenizer.eos_token!r}: when generating, stop at both"
        )
    kept = max(
        min(counts.longest, supervision.max_length) for counts in supervision.splits.values()
    )
    if kept > tokenizer.model_max_length:
        notes.append(
            f"examples have up to {kept} tokens, but the tokenizer states "
            f"{tokenizer.model_max_length} as its model's most"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        notes.append(
            f"no pad token: padding is {tokenizer.eos_token!r} under an attention mask of 0; real "
            "end tokens still carry loss"
        )
    return notes


def missing_labels(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Return the labels that one split shows and another never does."""
    return [name for name, count in expected.items() if count and not found.get(name)]

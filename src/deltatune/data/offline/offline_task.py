"""What every offline task states of itself: how it is built, scored, and how well one can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets

from deltatune.errors import InputError, unknown_name

__all__ = ["Level", "OfflineTask", "SPLITS"]

SPLITS = ("train", "validation", "test")
LARGEST = {"train": 1_000_000, "validation": 100_000, "test": 100_000}

Build = Callable[[Mapping[str, int], int, int], datasets.DatasetDict]
Score = Callable[[str, Mapping[str, Any]], float]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One difficulty of a task.

    Args:
        what: what makes it this hard, in a few words.
        chance: the metric of the best guess that never reads the input, in [0, 1]; of a loss, what
            the uniform predictor has, in nats.
        ceiling: the metric of one who makes no mistake, in [0, 1]; below 1 where the examples
            themselves leave more than one right answer. Of a loss, 0.
    """

    what: str
    chance: float
    ceiling: float = 1.0


@dataclass(frozen=True, kw_only=True)
class OfflineTask:
    """A task that is made on the spot, from a seed and the running Python, without a network.

    A module of `deltatune.data.offline` that holds one as `TASK` is found by its name.

    Args:
        name: kebab-case; `deltatune/NAME` wherever data is named.
        title: one line for tables.
        kind: a task of `deltatune.data.columns`.
        base: the base it is made for, `deltatune/nano` or another.
        metric: name of what `score` gives (completions), or of the evaluation's metric (labels).
        levels: difficulties, the first is 1.
        difficulty: the one taken if the user names none.
        sizes: split -> number of examples if the user names none.
        columns: column role -> column name; other columns only tell where a row comes from, or
            hold what `score` needs.
        build: sizes, seed and difficulty in; splits out, of exactly these sizes. No input may occur
            in two splits, and the same arguments give the same rows. Raises `InputError` where
            there are not enough different examples.
        score: for completions: the generated text (without the prompt) and its row in, a number in
            [0, 1] out; the row's own completion scores 1. None for labelled tasks and plain text.
        answer_tokens: the most tokens that are generated for one answer.
        is_pretraining: whether the base was pre-trained on this, so that the test split is what it
            may forget while it learns something else.
    """

    name: str
    title: str
    kind: str
    base: str
    metric: str
    levels: tuple[Level, ...]
    difficulty: int
    sizes: Mapping[str, int]
    columns: Mapping[str, str]
    build: Build = field(repr=False)
    score: Score | None = field(default=None, repr=False)
    answer_tokens: int = 0
    is_pretraining: bool = False

    def load(self, *, seed: int = 0, difficulty: int = 0, **sizes: int) -> datasets.DatasetDict:
        """Build the task.

        Args:
            seed: of every choice, from 0 up.
            difficulty: 1 to the number of levels; 0 takes the task's own.
            sizes: `train`, `validation`, `test`: numbers of examples where not the task's own.

        Raises:
            InputError: an unknown option, a number out of range, or more examples than there are.
        """
        for name in sizes:
            if name not in SPLITS:
                raise unknown_name("option", name, ("seed", "difficulty", *SPLITS))
        _check_whole(f"seed of {self.name}", seed, 0, 2**63 - 1)
        chosen = difficulty or self.difficulty
        _check_whole(f"difficulty of {self.name}", chosen, 1, len(self.levels))
        wanted = {split: sizes.get(split, self.sizes[split]) for split in SPLITS}
        for split, size in wanted.items():
            _check_whole(f"{split} of {self.name}", size, 2, LARGEST[split])
        return self.build(wanted, seed, chosen)

    def level(self, difficulty: int = 0) -> Level:
        """Return the stated level; 0 takes the task's own difficulty."""
        return self.levels[(difficulty or self.difficulty) - 1]


def _check_whole(what: str, value: object, lowest: int, highest: int) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not lowest <= int(str(value)) <= highest:
        raise InputError(
            f"{what} = {value!r} is not allowed: give a whole number from {lowest} to {highest}"
        )

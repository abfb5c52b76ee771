"""How answers to one data set are judged, and what the number is at worst and at best."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import datasets

from deltatune.errors import InputError, unknown_name

__all__ = [
    "LOSS",
    "METRICS",
    "Metric",
    "Yardstick",
    "by_metric",
    "exact_match",
    "final_number",
    "number_in",
]

LOSS = "loss"
NUMBER = re.compile(r"(?<![\w.])-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
ANSWER_MARK = "####"  # what worked answers put before their last line

Score = Callable[[str, Mapping[str, Any]], float]


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """How well a model did on one data set, as its maker or the user wants it measured.

    Args:
        metric: name of the number that tables show.
        score: a generated text (without the prompt) and its row in, a number in [0, 1] out; None
            where the evaluation has the metric without generating, as for labels.
        rows: split -> rows as `score` wants them, in the order of the examples.
        answer_tokens: the most tokens that are generated for one answer; 0 takes the measure of the
            known answers.
        answer_room: with `answer_tokens=0`, the longest known answer times this is generated.
        chance: the metric of the best guess that never reads the input; None if not known.
        ceiling: the metric of one who makes no mistake; None if not known.
    """

    metric: str
    score: Score | None = field(default=None, repr=False)
    rows: Mapping[str, datasets.Dataset] = field(default_factory=dict, repr=False)
    answer_tokens: int = 0
    answer_room: float = 1.0
    chance: float | None = None
    ceiling: float | None = None


def exact_match(generated: str, reference: str) -> float:
    """Return 1.0 where two texts are equal but for white space around them.

    >>> exact_match("blue ", " blue"), exact_match("Blue", "blue")
    (1.0, 0.0)
    """
    return float(generated.strip() == reference.strip())


def final_number(generated: str, reference: str) -> float:
    """Return 1.0 where two answers end in the same number (`number_in`), however they get there.

    The offline task word-problems has a metric of this name that reads its answers more strictly:
    `offline.word_problems.final_number` tells how.

    >>> final_number("2 and 3 make 5. #### 5", "#### 5.0"), final_number("1,200 cats", "#### 12")
    (1.0, 0.0)
    """
    found = number_in(generated)
    return float(found is not None and found == number_in(reference))


def number_in(text: str) -> Decimal | None:
    """Return the first number behind the last `####`, or without that mark the last number.

    More lenient than `offline.word_problems.final_number`, which reads behind the first mark and
    wants one: a user's own completions may have no mark at all, and where they have one, what
    stands before the last may be a draft. So a model that goes on behind its answer is judged by
    its last one.

    >>> number_in("so 3 x 1,250 #### 3,750 cents"), number_in("from 2 to -4."), number_in("none")
    (Decimal('3750'), Decimal('-4'), None)
    """
    _, mark, marked = text.rpartition(ANSWER_MARK)
    found: list[str] = NUMBER.findall(marked if mark else text)
    return Decimal(found[0 if mark else -1].replace(",", "")) if found else None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to compare a generated text with the known completion.

    Args:
        compare: both in, a number in [0, 1] out.
        answer_room: how much longer than the longest known completion an answer may become.
        check: raises `InputError` for a known completion that cannot be compared with; gets the
            completion and its place.
    """

    compare: Callable[[str, str], float]
    answer_room: float
    check: Callable[[str, str], None] | None = None


def _check_number(reference: str, place: str) -> None:
    if number_in(reference) is None:
        raise InputError(
            f"{place} has no number in its completion, which metric 'final_number' compares: write "
            f"the answer after {ANSWER_MARK}, or choose exact_match"
        )


METRICS: Mapping[str, Metric] = {
    "exact_match": Metric(compare=exact_match, answer_room=1.0),
    # Another way to the same number may be longer than the known one.
    "final_number": Metric(compare=final_number, answer_room=1.5, check=_check_number),
}


def by_metric(
    name: str, splits: Mapping[str, datasets.Dataset], *, task: str, completion: str
) -> Yardstick | None:
    """Return the yardstick that a user asks for by name; None for the loss.

    Args:
        name: of `METRICS`, or `loss`.
        splits: the splits that are scored -> their rows.
        task: of the data.
        completion: name of the column with the known answers.

    Raises:
        InputError: no such metric (nearest names given), a task without completions, or a known
            completion that the metric cannot compare with.
    """
    if name not in (LOSS, *METRICS):
        raise unknown_name("metric", name, (LOSS, *METRICS))
    if task != "completion":
        raise InputError(
            f"metric {name!r} is for data of the task completion, and the data's task is {task}: "
            f"leave the metric out"
        )
    if name == LOSS:
        return None
    metric = METRICS[name]
    if metric.check is not None:
        for split, rows in splits.items():
            for number, reference in enumerate(rows[completion], start=1):
                metric.check(reference, f"row {number} of {split}")
    return Yardstick(
        metric=name,
        score=lambda generated, row: metric.compare(generated, row[completion]),
        rows=splits,
        answer_room=metric.answer_room,
    )

"""Small arithmetic problems in words, with worked answers that end in `#### n`."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch

from deltatune.data.offline.distinct_examples import Family, digits, distinct_splits
from deltatune.data.offline.offline_task import Level, OfflineTask

__all__ = ["LEVELS", "TASK", "Story", "answer_shares", "final_number"]

NAMES = "Ada Ben Carl Dora Eva Finn Gina Hugo Ida Jack Kate Leo Mary Nina Otto Paul".split()
THINGS = (
    "apples balls bells books cards coins cups eggs flags keys maps notes pens rings stamps stones"
).split()
SMALLEST = 2  # of the numbers; 1 would need another word than the plural
LARGEST_RESULT = 99
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
FINAL_NUMBER = re.compile(r"####\s*([-+]?)\s*\$?\s*(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?")


@dataclass(frozen=True)
class Story:
    """A kind of problem.

    Args:
        text: with `{name}`, `{things}` and the numbers `{a}`, `{b}`, ... in it.
        steps: what is reckoned, such as `a + b`; the results are called x, y and z in turn, and
            the last one is the answer.
        largest: of the numbers; the fewer there are, the fewer sums have to be known.
    """

    text: str
    steps: tuple[str, ...]
    largest: int = 9

    @functools.cached_property
    def numbers(self) -> tuple[tuple[int, ...], ...]:
        """Every choice of a, b, ... that keeps all results from 1 to `LARGEST_RESULT`."""
        letters = [letter for letter in "abcd" if f"{{{letter}}}" in self.text]
        choices = itertools.product(range(SMALLEST, self.largest + 1), repeat=len(letters))
        return tuple(choice for choice in choices if _is_fit(self.worked(choice)))

    def worked(self, numbers: Sequence[int]) -> list[tuple[str, int]]:
        """Return each step as it is written, `3 + 4 = 7`, and its result."""
        values = dict(zip("abcd", numbers, strict=False))
        lines = []
        for name, step in zip("xyz", self.steps, strict=False):
            left, sign, right = step.split()
            result = OPERATIONS[sign](values[left], values[right])
            lines.append((f"{values[left]} {sign} {values[right]} = {result}", result))
            values[name] = result
        return lines

    def family(self) -> Family:
        """Return all examples of this kind: every name with every thing and all the numbers."""
        return Family(len(NAMES) * len(THINGS) * len(self.numbers), self._row)

    def _row(self, number: int, generator: torch.Generator) -> dict[str, Any]:
        bases = (len(NAMES), len(THINGS), len(self.numbers))
        name, thing, choice = digits(number, bases=bases)
        numbers = self.numbers[choice]
        words = {"name": NAMES[name], "things": THINGS[thing]}
        lines = self.worked(numbers)
        answer = lines[-1][1]
        reasoning = "\n".join(line for line, _ in lines)
        problem = self.text.format(**words, **dict(zip("abcd", numbers, strict=False)))
        return {
            "prompt": f"{problem}\nAnswer:",
            "completion": f" {reasoning}\n#### {answer}",
            "answer": answer,
        }


def _is_fit(lines: Sequence[tuple[str, int]]) -> bool:
    return all(1 <= result <= LARGEST_RESULT for _, result in lines)


LEVELS: tuple[tuple[Story, ...], ...] = (
    (
        Story(
            "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
            ("a + b",),
            largest=5,
        ),
        Story(
            "{name} puts {a} {things} on the table and {b} {things} on the desk. "
            "How many {things} did {name} put down?",
            ("a + b",),
            largest=5,
        ),
        Story(
            "{name} has {a} {things} and loses {b} of them. How many {things} are left?",
            ("a - b",),
            largest=5,
        ),
        Story(
            "{name} wants {a} {things} and has {b} so far. How many {things} are missing?",
            ("a - b",),
            largest=5,
        ),
    ),
    (
        Story(
            "{name} has {a} {things}, finds {b} more and gets {c} from a friend. "
            "How many {things} does {name} have now?",
            ("a + b", "x + c"),
        ),
        Story(
            "{name} has {a} {things}, finds {b} more and then loses {c}. "
            "How many {things} are left?",
            ("a + b", "x - c"),
        ),
        Story(
            "{name} has {a} {things}, gives {b} away and later finds {c} others. "
            "How many {things} does {name} have now?",
            ("a - b", "x + c"),
        ),
        Story(
            "{name} wants {a} {things}, has {b} in a bag and finds {c} on the table. "
            "How many {things} are missing?",
            ("a - b", "x - c"),
        ),
    ),
    (
        Story(
            "{name} fills {a} bags with {b} {things} each, finds {c} more and sells {d}. "
            "How many {things} are left?",
            ("a * b", "x + c", "y - d"),
        ),
        Story(
            "{name} has {a} {things}. Then {b} friends bring {c} {things} each, and {d} get lost. "
            "How many {things} are left?",
            ("b * c", "a + x", "y - d"),
        ),
        Story(
            "{name} buys {a} bags of {b} {things} and {c} bags of {d} {things}. "
            "How many {things} does {name} have now?",
            ("a * b", "c * d", "x + y"),
        ),
        Story(
            "Each day {name} finds {a} {things} and loses {b} of them. After {c} days {name} gives "
            "{d} {things} away. How many {things} are left?",
            ("a - b", "x * c", "y - d"),
        ),
        Story(
            "{name} puts {a} old and {b} new {things} in each of {c} bags and leaves {d} on the "
            "table. How many {things} does {name} have?",
            ("a + b", "x * c", "y + d"),
        ),
        Story(
            "{name} has {a} bags of {b} {things} and sells {c} {things} today and {d} the day "
            "after. How many {things} are left?",
            ("a * b", "x - c", "y - d"),
        ),
    ),
)


def answer_shares(difficulty: int) -> dict[int, float]:
    """Return how often each answer is right, where all kinds of problems are equally frequent.

    The largest share is what one gets who always gives that answer.

    Args:
        difficulty: from 1 to the number of levels.

    Returns:
        Answer -> fraction of all examples; the fractions sum to 1.
    """
    stories = LEVELS[difficulty - 1]
    shares: defaultdict[int, float] = defaultdict(float)
    for story in stories:
        for numbers in story.numbers:
            shares[story.worked(numbers)[-1][1]] += 1 / (len(stories) * len(story.numbers))
    return dict(shares)


def final_number(text: str) -> float | None:
    r"""Return the number directly behind the first `####`, None where there is none.

    Stricter than the metric of the same name for a user's own answers, `yardstick.final_number`,
    which takes the number after the last mark, or without a mark the last number of all. Here the
    completions show the mark once, and to write it is part of the task: what a model goes on to
    write behind its answer is not its answer, and a number that only ends a step is none.

    >>> final_number("2 * 700 = 1400\n#### 1,400 pens.")
    1400.0
    >>> final_number("1400") is None
    True
    """
    found = FINAL_NUMBER.search(text)
    if found is None or found.start() != text.find("####"):
        return None
    sign, whole, fraction = found.groups(default="")
    return float(f"{sign}{whole.replace(',', '')}{fraction}")


def _build(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    families = [story.family() for story in LEVELS[difficulty - 1]]
    return distinct_splits(
        families, sizes, seed=seed, name=f"word-problems of difficulty {difficulty}"
    )


def _score(text: str, row: Mapping[str, Any]) -> float:
    return float(final_number(text) == row["answer"])


TASK = OfflineTask(
    name="word-problems",
    title="Arithmetic word problems with worked answers",
    kind="completion",
    base="deltatune/nano",
    metric="final_number",
    levels=(
        Level(what="one step, + and -, numbers from 2 to 5", chance=0.25),
        Level(what="two steps, + and -, numbers below 10", chance=0.122),
        Level(what="three steps, one or two of them *", chance=0.019),
    ),
    difficulty=1,
    sizes={"train": 1500, "validation": 150, "test": 200},
    columns={"prompt": "prompt", "completion": "completion"},
    build=_build,
    score=_score,
    answer_tokens=48,
)

"""A short review of a program in, quadruples of aspect, category, opinion and sentiment out."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import datasets
import torch

from deltatune.data.offline.distinct_examples import Family, digits, distinct_splits
from deltatune.data.offline.offline_task import Level, OfflineTask

__all__ = ["ASPECTS", "OPINIONS", "TASK", "quadruple_f1", "quadruples_in"]

Item = TypeVar("Item")
Quadruple = tuple[str, str, str, str]  # aspect, category, opinion, sentiment

ASPECTS = MappingProxyType(  # aspect term -> category, each category as often
    {
        aspect: category
        for category, aspects in (
            ("code", "parser, function, class, method, module, compiler, search function"),
            ("text", "manual, example, docstring, comment, index, user guide, help text"),
            ("interface", "window, menu, button, dialog, prompt, command line, error message"),
            ("network", "server, client, connection, socket, request, proxy, host name"),
        )
        for aspect in aspects.split(", ")
    }
)
ACTIONS = MappingProxyType(  # an aspect that is not named -> category
    {"calling it": "code", "reading it": "text", "clicking": "interface", "connecting": "network"}
)
OPINIONS = MappingProxyType(  # opinion term -> sentiment
    {
        opinion: sentiment
        for sentiment, opinions in (
            (
                "positive",
                "good fast simple clear useful safe correct easy nice complete clean fine",
            ),
            (
                "negative",
                "bad slow wrong broken hard useless unsafe invalid ugly old empty strange",
            ),
            ("neutral", "normal usual common standard"),
        )
        for opinion in opinions.split()
    }
)
NEGATED = MappingProxyType({"positive": "negative", "negative": "positive"})
IMPLICIT = "none"
FRAMES = (
    "the {} is {}",
    "the {} was {}",
    "the {} looks {}",
    "this {} seems {}",
    "i found the {} {}",
    "we call the {} {}",
)
IMPLICIT_FRAME = "{} was {}"
OPENINGS = ("", "so far ", "in this version ", "on my machine ", "after an hour ", "at first ")
QUADRUPLE = re.compile(r"\(([^()]*)\)")


def quadruples_in(text: str) -> list[tuple[str, ...]]:
    """Return the parts of every bracket of a text, split at semicolons, spaces evened out.

    >>> quadruples_in("(parser; code; not  fast; negative) and (none)")
    [('parser', 'code', 'not fast', 'negative'), ('none',)]
    """
    return [
        tuple(" ".join(part.split()) for part in bracket.split(";"))
        for bracket in QUADRUPLE.findall(text)
    ]


def quadruple_f1(text: str, row: Mapping[str, Any]) -> float:
    """Return the F1 of the exact quadruples of one answer; their order does not matter.

    `2 * hits / (written + wanted)`. A bracket that is no quadruple counts as a wrong one, and so
    does a repetition; text outside brackets is not looked at.

    Args:
        text: what was generated.
        row: a row of the task; its `completion` holds the wanted quadruples.

    Returns:
        A fraction in [0, 1].

    Source: the exact match of four elements is the metric of aspect-category-opinion-sentiment
        extraction (Cai, Xia and Yu 2021, ACL), there taken over a corpus, here item by item.
    """
    written, wanted = quadruples_in(text), quadruples_in(row["completion"])
    hits = (Counter(written) & Counter(wanted)).total()
    return 2 * hits / (len(written) + len(wanted))


@dataclass(frozen=True)
class Clause:
    """The form of one statement of a review.

    Args:
        is_implicit: the aspect is not named; an action tells the category.
        is_negated: "not" stands before the opinion, and turns the sentiment round.
    """

    is_implicit: bool = False
    is_negated: bool = False

    @property
    def opinions(self) -> tuple[str, ...]:
        """The opinions that fit: a negated neutral one would be no clear sentiment."""
        return tuple(o for o in OPINIONS if not self.is_negated or OPINIONS[o] in NEGATED)

    def say(self, aspect: str, opinion: str, frame: int) -> tuple[str, Quadruple]:
        """Return the words and what they mean."""
        sentiment = OPINIONS[opinion]
        if self.is_negated:
            opinion, sentiment = f"not {opinion}", NEGATED[sentiment]
        if self.is_implicit:
            words = IMPLICIT_FRAME.format(aspect, opinion)
            return words, (IMPLICIT, ACTIONS[aspect], opinion, sentiment)
        return FRAMES[frame].format(aspect, opinion), (
            aspect,
            ASPECTS[aspect],
            opinion,
            sentiment,
        )


def _family(clauses: Sequence[Clause]) -> Family:
    """Return all reviews of this form; no aspect and no opinion occurs twice in one."""
    aspects = [list(ACTIONS if clause.is_implicit else ASPECTS) for clause in clauses]
    opinions = [list(clause.opinions) for clause in clauses]
    bases = [
        len(OPENINGS),
        *(1 if clause.is_implicit else len(FRAMES) for clause in clauses),
        *_numbers_left(aspects),
        *_numbers_left(opinions),
    ]

    def make(number: int, generator: torch.Generator) -> dict[str, Any]:
        opening, *rest = digits(number, bases=bases)
        count = len(clauses)
        said = [
            clause.say(aspect, opinion, frame)
            for clause, frame, aspect, opinion in zip(
                clauses,
                rest[:count],
                _without_repeats(aspects, rest[count : 2 * count]),
                _without_repeats(opinions, rest[2 * count :]),
                strict=True,
            )
        ]
        return _row(OPENINGS[opening], said)

    return Family(math.prod(bases), make)


def _numbers_left(choices: Sequence[Sequence[str]]) -> list[int]:
    """Return how many choices each place surely has once those before it have taken theirs."""
    return [
        len(some) - sum(not set(some).isdisjoint(earlier) for earlier in choices[:place])
        for place, some in enumerate(choices)
    ]


def _without_repeats(choices: Sequence[Sequence[str]], places: Sequence[int]) -> list[str]:
    taken: list[str] = []
    for some, place in zip(choices, places, strict=True):
        taken.append([choice for choice in some if choice not in taken][place])
    return taken


def _row(opening: str, said: Sequence[tuple[str, Quadruple]]) -> dict[str, Any]:
    words, previous = said[0]
    review = opening + words
    for words, quadruple in said[1:]:
        review += f"{' and ' if quadruple[3] == previous[3] else ', but '}{words}"
        previous = quadruple
    quadruples = " ".join(f"({'; '.join(quadruple)})" for _, quadruple in said)
    return {
        "prompt": f"review: {review}.\nquadruples:",
        "completion": f" {quadruples}",
        "number_of_quadruples": len(said),
    }


def _forms(difficulty: int) -> list[tuple[Clause, ...]]:
    """Return the forms of reviews; at level 3 at most one aspect of a review is implicit."""
    if difficulty < 3:
        return [(Clause(),) * difficulty]
    return [
        tuple(Clause(is_implicit=i == hidden, is_negated=no) for i, no in enumerate(negations))
        for count in (1, 2, 3)
        for hidden in range(-1, count)
        for negations in itertools.product((False, True), repeat=count)
    ]


def _build(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    families = [_family(form) for form in _forms(difficulty)]
    name = f"aspect-sentiment of difficulty {difficulty}"
    return distinct_splits(families, sizes, seed=seed, name=name)


# Of all guesses that read nothing, a list of all quadruples that may occur has the best F1, at
# level 3 of all those with an implicit aspect. Levels 1 and 2 have 28 aspects with 28 opinions:
# 2 / (784 + 1) and 2 * 2 / (784 + 2).
TASK = OfflineTask(
    name="aspect-sentiment",
    title="Take a review apart into aspect, category, opinion and sentiment",
    kind="completion",
    base="deltatune/nano",
    metric="quadruple_f1",
    levels=(
        Level(what="one statement", chance=0.0025),
        Level(what="two statements", chance=0.0051),
        Level(what="up to three, opinions negated, aspects not named", chance=0.0067),
    ),
    difficulty=1,
    sizes=MappingProxyType({"train": 1500, "validation": 150, "test": 200}),
    columns=MappingProxyType({"prompt": "prompt", "completion": "completion"}),
    build=_build,
    score=quadruple_f1,
    answer_tokens=56,
)

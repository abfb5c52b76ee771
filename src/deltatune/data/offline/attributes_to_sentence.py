"""A list of facts about a function in, one sentence that tells them all out."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch

from deltatune.data.offline.distinct_examples import Family, digits, distinct_splits
from deltatune.data.offline.offline_task import Level, OfflineTask
from deltatune.seeds import shuffled

__all__ = ["ATTRIBUTES", "TASK", "Attribute", "sentence_for", "sentence_score"]

TYPES = "string list path number file dictionary tuple integer object iterator date set".split()


@dataclass(frozen=True)
class Attribute:
    """One kind of fact.

    Args:
        name: as it stands in the list.
        phrases: value -> its wordings; the first is the one that the completions use.
    """

    name: str
    phrases: Mapping[str, tuple[str, ...]]


def _phrased(name: str, values: Sequence[str], *openings: str) -> Attribute:
    return Attribute(
        name, {value: tuple(f"{opening} {value}" for opening in openings) for value in values}
    )


def _typed(name: str, *verbs: str) -> Attribute:
    with_article = {value: f"{'an' if value[0] in 'aeiou' else 'a'} {value}" for value in TYPES}
    return Attribute(
        name,
        {value: tuple(f"{verb} {text}" for verb in verbs) for value, text in with_article.items()},
    )


# In the order in which a sentence tells them.
ATTRIBUTES = (
    Attribute("speed", {"high": ("fast", "quick"), "low": ("slow",)}),
    Attribute("public", {"yes": ("public",), "no": ("private", "internal")}),
    _phrased(
        "name",
        "add append check clear close convert copy count create delete encode find format get "
        "insert join load match merge move open parse print read remove replace reset save search "
        "send set sort split start stop strip test update wait write".split(),
        "function",
    ),
    _phrased(
        "module",
        "abc ast csv email html http io json logging math os random re shelve socket time".split(),
        "module",
    ),
    _typed("takes", "takes", "accepts"),
    _typed("returns", "returns", "gives"),
    _phrased(
        "raises",
        "AttributeError EOFError ImportError IndexError KeyError NameError OSError RuntimeError "
        "TypeError ValueError".split(),
        "raises",
        "may raise",
    ),
)
ORDER = tuple(attribute.name for attribute in ATTRIBUTES)
BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}
PREDICATES = ("takes", "returns", "raises")
FILLERS = frozenset("a an and in it of the".split())
SENTENCE = re.compile(r"[A-Z][^.!?;:\[\]\n]*\.")  # one sentence and nothing beside it
WORD = re.compile(r"[^\s,.]+")
Fact = tuple[str, str]  # attribute name, value
FACTS = {  # words of a phrase -> what it says
    tuple(phrase.lower().split()): (attribute.name, value)
    for attribute in ATTRIBUTES
    for value, phrases in attribute.phrases.items()
    for phrase in phrases
}
LONGEST_PHRASE = max(len(words) for words in FACTS)


def sentence_for(facts: Mapping[str, str]) -> str:
    """Return the sentence that the completions use for some facts.

    Args:
        facts: attribute name -> value; with a name and at least one of takes, returns and raises.

    >>> sentence_for({"returns": "list", "name": "read", "public": "no", "takes": "path"})
    'The private function read takes a path and returns a list.'
    """
    said = {name: BY_NAME[name].phrases[facts[name]][0] for name in ORDER if name in facts}
    subject = [said[name] for name in ("speed", "public", "name") if name in said]
    if "module" in said:
        subject.append(f"of {said['module']}")
    predicates = [said[name] for name in PREDICATES if name in said]
    last = " and ".join(predicates[-2:])
    return f"The {' '.join(subject)} {', '.join([*predicates[:-2], last])}."


def sentence_score(text: str, facts: Mapping[str, str]) -> float:
    """Return how exactly a text tells the given facts and nothing else.

    `told / (given + surplus)`: `told` counts the given facts that the text expresses without
    contradicting itself (fast and slow tells nothing of speed); `surplus` counts its other facts,
    every repetition, and every word that is part of no fact and not one of "a, an, and, in, it, of,
    the". The score is 0 for what is not exactly one sentence: a capital letter first, one full
    stop, at the end, and no brackets, so a copy of the list scores 0. Grammar is judged only within
    a phrase: "takes an list" tells nothing.

    Args:
        text: what was generated.
        facts: attribute name -> value, as given.

    Returns:
        A fraction in [0, 1]; 1 only if each fact is told once and nothing else is said.
    """
    if SENTENCE.fullmatch(text.strip()) is None:
        return 0.0
    expressed, foreign = _read(text)
    values = Counter(name for name, _ in set(expressed))
    told = sum(values[name] == 1 for name, _ in set(expressed) & set(facts.items()))
    surplus = len(expressed) - told + foreign
    return told / (len(facts) + surplus)


def _read(text: str) -> tuple[list[Fact], int]:
    """Return the facts that a text expresses, with repetitions, and how many words are foreign."""
    words = [word.lower() for word in WORD.findall(text)]
    facts, foreign, place = [], 0, 0
    while place < len(words):
        length = _phrase_length(words, place)
        if length:
            facts.append(FACTS[tuple(words[place : place + length])])
        elif words[place] not in FILLERS:
            foreign += 1
        place += length or 1
    return facts, foreign


def _phrase_length(words: Sequence[str], place: int) -> int:
    """Return how many words from a place on make a phrase, the longest one; 0 if none does."""
    lengths = range(LONGEST_PHRASE, 0, -1)
    return next((n for n in lengths if tuple(words[place : place + n]) in FACTS), 0)


def _family(names: Sequence[str], is_shuffled: bool) -> Family:
    """Return all examples with these attributes; their order does not make another example."""
    values = [list(BY_NAME[name].phrases) for name in names]
    bases = [len(choices) for choices in values]

    def make(number: int, generator: torch.Generator) -> dict[str, Any]:
        chosen = [values[i][digit] for i, digit in enumerate(digits(number, bases=bases))]
        facts = list(zip(names, chosen, strict=True))
        if is_shuffled:
            facts = shuffled(facts, generator)
        listed = ", ".join(f"{name}[{value}]" for name, value in facts)
        return {
            "prompt": f"{listed}\nSentence:",
            "completion": f" {sentence_for(dict(facts))}",
            "attributes": [name for name, _ in facts],
            "values": [value for _, value in facts],
        }

    return Family(math.prod(bases), make)


def _subsets(difficulty: int) -> list[tuple[str, ...]]:
    """Return the attributes that occur together, each time the name and some of the others."""
    if difficulty == 1:
        return [("name", "takes", "returns")]
    free, sizes = (
        (("module", *PREDICATES), (2, 3))
        if difficulty == 2
        else (("speed", "public", "module", *PREDICATES), (4, 5, 6))
    )
    chosen = [{"name", *some} for size in sizes for some in itertools.combinations(free, size)]
    return [tuple(name for name in ORDER if name in names) for names in chosen]


def _build(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    families = [_family(names, is_shuffled=difficulty == 3) for names in _subsets(difficulty)]
    name = f"attributes-to-sentence of difficulty {difficulty}"
    return distinct_splits(families, sizes, seed=seed, name=name)


def _score(text: str, row: Mapping[str, Any]) -> float:
    return sentence_score(text, dict(zip(row["attributes"], row["values"], strict=True)))


TASK = OfflineTask(
    name="attributes-to-sentence",
    title="Tell the facts about a function in one sentence",
    kind="completion",
    base="deltatune/nano",
    metric="attribute_score",
    levels=(
        Level(what="three facts, always the same kinds, in order", chance=0.043),
        Level(what="three or four facts of five kinds, in order", chance=0.03),
        Level(what="five to seven facts of seven kinds, shuffled, two reworded", chance=0.122),
    ),
    difficulty=1,
    sizes={"train": 1500, "validation": 150, "test": 200},
    columns={"prompt": "prompt", "completion": "completion"},
    build=_build,
    score=_score,
    answer_tokens=40,
)

"""Attributes to sentence: one wording for each list, and a score that tells facts from noise."""

from __future__ import annotations

import itertools
import re

import pytest

from deltatune.data.offline.attributes_to_sentence import (
    ATTRIBUTES,
    TASK,
    sentence_for,
    sentence_score,
)
from deltatune.errors import InputError

FACTS = {"name": "read", "takes": "path", "returns": "list"}
VALUES = {attribute.name: attribute.phrases for attribute in ATTRIBUTES}


def test_sentence_for_all_attributes_tells_them_in_order() -> None:
    facts = {
        "raises": "OSError",
        "takes": "integer",
        "speed": "low",
        "name": "open",
        "returns": "file",
        "public": "no",
        "module": "io",
    }
    assert sentence_for(facts) == (
        "The slow private function open of module io takes an integer, returns a file and raises "
        "OSError."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The function read takes a path and returns a list.", 1),
        ("The function read accepts a path and gives a list.", 1),  # other wordings
        ("The function read, it returns a list and takes a path.\n", 1),  # another order
        ("The function read takes a path.", 2 / 3),
        ("The function read takes a list and returns a path.", 1 / (3 + 2)),  # exchanged
        ("The function open takes a path and returns a list.", 2 / (3 + 1)),
        ("The function read takes a path, returns a list and raises KeyError.", 3 / (3 + 1)),
        ("The function read takes a path, takes a path and returns a list.", 3 / (3 + 1)),
        ("The function read takes a path, takes a set and returns a list.", 2 / (3 + 2)),
        ("The function read nicely takes a path and returns a list.", 3 / (3 + 1)),
        ("The function read takes an path and returns a list.", 2 / (3 + 2)),
        ("Read path list.", 0),
        ("The function read takes a path and returns a list", 0),  # no sentence
        ("the function read takes a path and returns a list.", 0),
        ("The function read takes a path. It returns a list.", 0),
        ("The function read\ntakes a path and returns a list.", 0),
        ("name[read], takes[path], returns[list]", 0),
        ("Name[read], takes[path], returns[list].", 0),
        ("", 0),
    ],
)
def test_sentence_score_equals_hand_count(text: str, expected: float) -> None:
    assert sentence_score(text, FACTS) == pytest.approx(expected)


def test_phrases_are_told_apart() -> None:
    phrases = [
        phrase.lower().split()
        for attribute in ATTRIBUTES
        for wordings in attribute.phrases.values()
        for phrase in wordings
    ]
    for one, other in itertools.permutations(phrases, 2):
        starts = range(len(other) - len(one) + 1)
        assert not any(other[start : start + len(one)] == one for start in starts)


def test_every_wording_of_every_value_counts() -> None:
    for attribute in ATTRIBUTES:
        for value, wordings in attribute.phrases.items():
            for wording in wordings:
                assert sentence_score(f"The {wording}.", {attribute.name: value}) == 1


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_attributes_to_sentence_lists_are_what_the_sentence_tells(difficulty: int) -> None:
    for row in TASK.load(difficulty=difficulty, train=100, validation=2, test=2)["train"]:
        listed, _, last = row["prompt"].partition("\n")
        facts = dict(re.findall(r"(\w+)\[(\w+)\]", listed))
        assert last == "Sentence:"
        assert facts == dict(zip(row["attributes"], row["values"], strict=True))
        assert row["completion"] == f" {sentence_for(facts)}"
        assert "name" in facts
        assert facts.keys() & {"takes", "returns", "raises"}
        lowest, highest = {1: (3, 3), 2: (3, 4), 3: (5, 7)}[difficulty]
        assert lowest <= len(facts) <= highest


@pytest.mark.parametrize(("difficulty", "is_shuffled"), [(1, False), (2, False), (3, True)])
def test_attributes_to_sentence_order_is_shuffled_where_the_level_says(
    difficulty: int, is_shuffled: bool
) -> None:
    order = list(VALUES)
    rows = TASK.load(difficulty=difficulty, train=50, validation=2, test=2)["train"]
    in_order = [sorted(row["attributes"], key=order.index) == row["attributes"] for row in rows]
    assert sum(in_order) <= 5 if is_shuffled else all(in_order)


def test_attributes_to_sentence_facts_occur_once_in_whatever_order() -> None:
    dataset = TASK.load(difficulty=3, train=2000, validation=100, test=100)
    facts = [
        frozenset(zip(row["attributes"], row["values"], strict=True))
        for split in dataset.values()
        for row in split
    ]
    assert len(set(facts)) == len(facts)


def best_constant(difficulty: int) -> float:
    """The mean score of the best set of facts that is told whatever the list says.

    The values of an attribute are equally frequent, so one of each stands for all of them.
    """
    rows = TASK.load(difficulty=difficulty, train=3000, validation=2, test=2)["train"].to_list()
    given = [dict(zip(row["attributes"], row["values"], strict=True)) for row in rows]
    best = 0.0
    for size in range(1, len(ATTRIBUTES) + 1):
        for names in itertools.combinations(VALUES, size):
            constant = {(name, next(iter(VALUES[name]))) for name in names}
            told = [len(constant & set(facts.items())) for facts in given]
            scores = (t / (len(f) + size - t) for t, f in zip(told, given, strict=True))
            best = max(best, sum(scores) / len(given))
    return best


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_attributes_to_sentence_chance_is_that_of_the_best_constant(difficulty: int) -> None:
    # The standard deviation of the mean over 3000 rows is about 0.002, and the best is taken.
    assert best_constant(difficulty) == pytest.approx(TASK.level(difficulty).chance, abs=0.006)


def test_sentence_score_of_every_value_at_once_stays_below_chance() -> None:
    everything = [p[0] for phrases in VALUES.values() for p in phrases.values()]
    assert sentence_score(f"The {', '.join(everything)}.", FACTS) == 0  # it contradicts itself


def test_attributes_to_sentence_refuses_more_than_there_are() -> None:
    possible = 40 * 12 * 12
    message = (
        rf"^train=6000 is not allowed: attributes-to-sentence of difficulty 1 has {possible} "
        rf"different examples, of which the other splits take 350; give at most {possible - 350}$"
    )
    with pytest.raises(InputError, match=message):
        TASK.load(difficulty=1, train=6000)

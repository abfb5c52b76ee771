"""Acceptability: pairs stay together, no word count tells the label, the same at every call."""

from __future__ import annotations

import re
from collections import Counter

import datasets
import pytest
import torch

from deltatune.data.offline.acceptability import TASK
from deltatune.data.offline.minimal_pairs import LEVELS, Phenomenon, squares
from deltatune.errors import InputError

DIFFICULTIES = (1, 2, 3)


@pytest.fixture(scope="module", params=DIFFICULTIES)
def built(request: pytest.FixtureRequest) -> datasets.DatasetDict:
    return TASK.load(difficulty=request.param, train=480, validation=120, test=240)


def word_counts(split: datasets.Dataset, label: int) -> Counter[str]:
    sentences = (row["sentence"] for row in split if row["label"] == label)
    return Counter(word for sentence in sentences for word in re.findall(r"\w+", sentence))


def test_acceptability_words_occur_as_often_under_both_labels(built: datasets.DatasetDict) -> None:
    # The mean of every word's count is then the same under both labels: the best linear rule on
    # counts has weights of zero and knows nothing but the share of the labels, a half.
    for split in built.values():
        assert word_counts(split, 0) == word_counts(split, 1)
        assert sum(split["label"]) * 2 == len(split)


def test_acceptability_pairs_are_whole_and_in_one_split(built: datasets.DatasetDict) -> None:
    owners = [Counter(split["pair"]) for split in built.values()]
    assert all(count == 2 for owner in owners for count in owner.values())
    assert sum(len(owner) for owner in owners) == len(set().union(*owners)) == 420


def test_acceptability_phenomena_take_turns(built: datasets.DatasetDict) -> None:
    for split in built.values():
        counts = Counter(split["phenomenon"])
        assert max(counts.values()) - min(counts.values()) <= 4  # a square of two pairs


def test_acceptability_sentences_occur_once(built: datasets.DatasetDict) -> None:
    sentences = [sentence for split in built.values() for sentence in split["sentence"]]
    assert len(set(sentences)) == len(sentences) == 840


def test_acceptability_is_the_same_at_every_call_and_differs_by_seed() -> None:
    sizes = {"train": 40, "validation": 8, "test": 8}
    first = TASK.load(seed=3, **sizes)["train"].to_list()
    torch.manual_seed(99)
    assert TASK.load(seed=3, **sizes)["train"].to_list() == first
    assert TASK.load(seed=4, **sizes)["train"].to_list() != first
    # Pinned: another machine or Python has to give these very rows.
    assert first[0]["sentence"] == "the method empty follows the class."


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_acceptability_is_balanced_within_one_when_cut(size: int) -> None:
    labels = TASK.load(train=size, validation=2, test=2)["train"]["label"][:]
    assert len(labels) == size
    assert abs(labels.count(0) - labels.count(1)) <= 1


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_phenomena_write_squares_of_distinct_sentences(difficulty: int) -> None:
    for phenomenon in LEVELS[difficulty - 1]:
        seen: set[str] = set()
        for number in range(0, phenomenon.number_of_frames, phenomenon.number_of_frames // 500):
            square = phenomenon.square(number)
            if square is not None:
                sentences = {sentence for pair in square for sentence in pair}
                assert len(sentences) == 4
                assert seen.isdisjoint(sentences)
                seen |= sentences


def test_nearest_noun_tells_nothing_of_far_agreement() -> None:
    rows = TASK.load(difficulty=3, train=1500)["train"]
    hits = []
    for row in rows.filter(lambda row: row["phenomenon"] == "far agreement"):
        *_, nearest, verb, _ = row["sentence"].split()
        is_plural = nearest.endswith("s") and nearest not in ("class", "process")
        agrees = is_plural != verb.endswith("s")
        hits.append(agrees == bool(row["label"]))
    assert len(hits) == 300
    assert abs(sum(hits) / len(hits) - 0.5) < 0.09  # three standard errors of 300 draws


def test_squares_leave_out_frames_that_use_a_word_twice() -> None:
    phenomenon = Phenomenon("echo", (("a", "b"), ("a", "b")), lambda x, y: ((x, y), (y, x)))
    found = list(squares(phenomenon, torch.Generator().manual_seed(0)))
    assert sorted(found) == [(("a", "b"), ("b", "a")), (("b", "a"), ("a", "b"))]


def test_acceptability_refuses_more_sentences_than_the_grammar_has() -> None:
    with pytest.raises(InputError, match=r"^train=70000 is not allowed: .*has \d+ ") as info:
        TASK.load(difficulty=1, train=70000, validation=2, test=2)
    possible = int(re.findall(r"has (\d+)", str(info.value))[0])
    built = TASK.load(difficulty=1, train=possible, validation=2, test=2)
    assert len(set(built["train"]["sentence"])) == possible

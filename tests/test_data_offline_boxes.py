"""Boxes: the prompt's form, groups that share a context, and no context in two splits."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import datasets
import pytest

from deltatune.data.offline.boxes import (
    BOX_FIRST,
    LETTERS,
    NUMBERS_OF_BOXES,
    OBJECTS,
    TASK,
    BoxSample,
    box_samples,
)
from deltatune.errors import InputError

SIZES = {"train": 60, "validation": 20, "test": 40}  # no multiple of 7: groups are cut


def built(difficulty: int) -> datasets.DatasetDict:
    return TASK.load(difficulty=difficulty, **SIZES)


def contents(row: dict[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset(zip(row["objects"], row["letters"], strict=True))


def score(text: str, answer: str) -> float:
    assert TASK.score is not None
    return TASK.score(text, {"answer": answer})


def test_box_sample_reads_as_in_the_paper() -> None:
    sample = BoxSample(0, ("cup", "key"), ("Q", "B"), 1)
    assert sample.prompt == "The cup is in Box Q, the key is in Box B. Box B contains the"
    assert (sample.query_letter, sample.answer) == ("B", "key")
    assert sample.row()["completion"] == " key"


def test_box_sample_can_name_the_box_first() -> None:
    sample = BoxSample(0, ("cup", "key"), ("Q", "B"), 1, clause=BOX_FIRST)
    assert sample.prompt == "Box Q has the cup, Box B has the key. Box B contains the"


def test_box_samples_have_letters_at_equal_steps() -> None:
    for sample in itertools.islice(box_samples(7), 28):
        # With a start token before and commas as tokens, letter i of the paper is token 6 + 7 i.
        tokens = ["<s>", *sample.prompt.replace(",", " ,").replace(".", " .").split()]
        assert [tokens[6 + 7 * i] for i in range(7)] == list(sample.letters)
        assert [tokens[6 + 7 * i - 4] for i in range(7)] == list(sample.objects)
        assert tokens[-3] == sample.query_letter
        assert tokens[:-3].count(sample.query_letter) == 1
        assert len(tokens) == 1 + 7 * 7 + 4


@pytest.mark.parametrize("boxes", NUMBERS_OF_BOXES)
def test_box_samples_of_a_context_ask_for_each_box_once(boxes: int) -> None:
    samples = list(itertools.islice(box_samples(boxes), 5 * boxes))
    for number, (_, group) in enumerate(itertools.groupby(samples, lambda s: s.context_id)):
        members = list(group)
        assert [sample.context_id for sample in members] == [number] * boxes
        assert [sample.query_index for sample in members] == list(range(boxes))
        assert len({(sample.objects, sample.letters) for sample in members}) == 1
        assert len(set(members[0].objects)) == len(set(members[0].letters)) == boxes


def test_box_samples_end_when_every_context_occurred() -> None:
    samples = list(box_samples(2, objects=["cup", "key"]))
    contexts = {frozenset(zip(s.objects, s.letters, strict=True)) for s in samples}
    assert len(contexts) == 26 * 25  # the two orders of the clauses are one context
    assert len(samples) == 2 * 26 * 25


@pytest.mark.parametrize("boxes", [1, 0, 27])
def test_box_samples_refuse_a_number_of_boxes_at_once(boxes: int) -> None:
    with pytest.raises(InputError, match=f"^boxes={boxes} is not allowed: .* from 2 to 26 = "):
        box_samples(boxes)


def test_box_samples_refuse_an_object_twice() -> None:
    with pytest.raises(InputError, match="each may occur only once"):
        box_samples(2, objects=["cup", "key", "cup"])


def test_objects_are_about_eighty_plain_words_without_a_box() -> None:
    assert 75 <= len(set(OBJECTS)) == len(OBJECTS) <= 90
    assert all(word.isalpha() and word.islower() and len(word) > 2 for word in OBJECTS)
    assert "box" not in OBJECTS


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_boxes_contexts_stay_in_one_split(difficulty: int) -> None:
    dataset = built(difficulty)
    for one, other in itertools.combinations(dataset.values(), 2):
        assert not set(map(contents, one)) & set(map(contents, other))
        assert not set(one["context_id"]) & set(other["context_id"])


@pytest.mark.parametrize(("difficulty", "boxes"), [(1, 3), (2, 5), (3, 7)])
def test_boxes_have_the_levels_number_of_boxes(difficulty: int, boxes: int) -> None:
    for row in built(difficulty)["train"]:
        assert len(row["objects"]) == boxes
        # The paper's clause names the thing first.
        clause = " is in Box " if difficulty == 3 else " has the "
        assert row["prompt"].count(clause) == boxes
        assert row["completion"] == f" {row['objects'][row['query_index']]}"
    assert TASK.level(difficulty).chance == 1 / boxes


def test_boxes_guess_of_one_place_is_right_as_often_as_chance_says() -> None:
    test = TASK.load(difficulty=1, train=2, validation=2, test=300)["test"]
    for place in range(3):  # whoever always names the object of one clause
        hits = Counter(row["objects"][place] == row["answer"] for row in test)
        assert hits[True] / 300 == TASK.level(1).chance


def test_boxes_use_all_letters_and_objects() -> None:
    train = TASK.load(difficulty=3, train=700, validation=2, test=2)["train"]
    assert {letter for row in train for letter in row["letters"]} == set(LETTERS)
    assert {thing for row in train for thing in row["objects"]} == set(OBJECTS)


@pytest.mark.parametrize("text", [" key", "key", " key.", "\nkey, which is", " key is in it"])
def test_boxes_score_takes_the_first_word(text: str) -> None:
    assert score(text, "key") == 1


@pytest.mark.parametrize("text", ["", " ", " cup", " the key", " keys", " key-ring", " Key", "."])
def test_boxes_score_refuses_another_first_word(text: str) -> None:
    assert score(text, "key") == 0

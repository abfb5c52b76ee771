"""Word problems: the answers follow from the numbers in the text, and the score reads them."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
import torch

from deltatune.data.offline.word_problems import (
    LEVELS,
    TASK,
    Story,
    answer_shares,
    final_number,
)
from deltatune.errors import InputError

BAGS = Story("{name}: {a} bags of {b} {things}, {c} less", ("a * b", "x - c"))


def score(text: str, answer: int) -> float:
    assert TASK.score is not None
    return TASK.score(text, {"answer": answer})


def test_story_works_out_its_steps_in_order() -> None:
    assert BAGS.worked((3, 4, 5)) == [("3 * 4 = 12", 12), ("12 - 5 = 7", 7)]


def test_story_numbers_keep_every_result_positive_and_below_a_hundred() -> None:
    story = Story("{a} {b} {c}", ("a * b", "x * c"))
    assert (4, 4, 6) in story.numbers  # 96
    assert (4, 5, 5) not in story.numbers  # 100
    assert Story("{a} {b}", ("a - b",)).numbers[:2] == ((3, 2), (4, 2))
    assert len(Story("{a} {b}", ("a - b",)).numbers) == 28  # 8 over 2


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_word_problems_reckon_with_the_numbers_of_the_text(difficulty: int) -> None:
    for row in TASK.load(difficulty=difficulty, train=200, validation=2, test=2)["train"]:
        *steps, last = row["completion"].strip().split("\n")
        known = Counter(int(number) for number in re.findall(r"\d+", row["prompt"]))
        for step in steps:
            left, sign, right, _, result = step.split()
            values = int(left), int(right)
            reckoned = {"+": sum(values), "-": values[0] - values[1], "*": values[0] * values[1]}
            assert int(result) == reckoned[sign]
            known.subtract(values)
            known[int(result)] += 1
        assert len(steps) == difficulty
        assert last == f"#### {row['answer']}"
        # Every number of the text and every result is used once; what is left is the answer.
        assert +known == Counter([row["answer"]])
        assert min(known.values()) == 0


def test_word_problems_say_what_the_level_says() -> None:
    steps = [[step for story in level for step in story.steps] for level in LEVELS]
    assert [{len(story.steps) for story in level} for level in LEVELS] == [{1}, {2}, {3}]
    assert not any("*" in step for step in steps[0] + steps[1])
    assert all(any("*" in step for step in story.steps) for story in LEVELS[2])


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_word_problems_chance_is_the_share_of_the_most_frequent_answer(difficulty: int) -> None:
    shares = answer_shares(difficulty)
    chance = TASK.level(difficulty).chance
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares.values()) == pytest.approx(chance, abs=5e-4)  # stated to three digits
    answers = TASK.load(difficulty=difficulty, train=6000, validation=2, test=2)["train"]["answer"]
    found = Counter(answers).most_common(1)[0][1] / 6000
    # Three standard deviations of a share of 0.25 in 6000 are 0.017; the largest of some thirty
    # nearly equal shares errs upwards by no more.
    assert found == pytest.approx(chance, abs=0.017)


def test_answer_shares_equal_a_hand_count() -> None:
    # Answer 1: (3, 2), (4, 3), (5, 4) are 3 of 6 in two of four stories, none in the sums.
    assert answer_shares(1)[1] == pytest.approx(3 / 6 / 2)
    # Answer 10 = 5 + 5 is 1 of 16 in the two sums.
    assert answer_shares(1)[10] == pytest.approx(1 / 16 / 2)


def test_word_problems_texts_differ_between_stories_and_numbers() -> None:
    story = LEVELS[0][2]
    family = story.family()
    assert family.size == 16 * 16 * 6
    numbers = range(0, family.size, 7)
    generator = torch.Generator()
    prompts = {family.make(number, generator)["prompt"] for number in numbers}
    assert len(prompts) == len(numbers)
    texts = [re.sub(r"\{\w+\}", "", story.text) for level in LEVELS for story in level]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 3 + 4 = 7\n#### 7", 7),
        ("#### 7.", 7),
        ("####7 pens\nMore text 12", 7),
        ("#### 1,234,567", 1234567),
        ("#### -12", -12),
        ("#### +12", 12),
        ("#### $12.50 in all", 12.5),
        ("#### 7.0", 7),
        ("#### 7\n\n#### 8", 7),
        ("#### 1,5", 1),  # no thousands: the number ends at the comma
        ("7", None),
        ("### 7", None),
        ("#### seven", None),
        ("#### seven #### 7", None),
        ("", None),
    ],
)
def test_final_number_reads_what_follows_the_marks(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_final_number_reads_a_number_of_any_length() -> None:
    assert final_number(f"#### {'9' * 5000}") == float("inf")


def test_word_problems_score_compares_with_the_rows_answer() -> None:
    assert score(" 2 + 2 = 5\n#### 7", 7) == 1  # the way is not judged
    assert score(" 3 + 4 = 7\n#### 8", 7) == 0
    assert score(" 3 + 4 = 7", 7) == 0
    assert score("#### -7", 7) == 0
    assert score("#### 7.5", 7) == 0


def test_word_problems_refuse_more_than_there_are() -> None:
    possible = 2 * 16 * 16 * (16 + 6)
    message = (
        rf"^train=20000 is not allowed: word-problems of difficulty 1 has {possible} different "
        rf"examples, of which the other splits take 350; give at most {possible - 350}$"
    )
    with pytest.raises(InputError, match=message):
        TASK.load(difficulty=1, train=20000)


def test_word_problems_kinds_are_equally_frequent() -> None:
    rows = TASK.load(difficulty=3, train=60, validation=2, test=2)["train"]
    signs = Counter("".join(re.findall(r" ([-+*]) ", row["completion"])) for row in rows)
    assert set(signs) == {"*+-", "**+", "-*-", "+*+", "*--"}
    assert all(abs(signs[kind] - count) <= 1 for kind, count in {"*+-": 20, "**+": 10}.items())
    assert len(list(itertools.chain.from_iterable(LEVELS))) == 14

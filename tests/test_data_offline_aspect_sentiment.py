"""Quadruples of a review: what is written is what is meant, and F1 counts by hand."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from deltatune.data.offline.aspect_sentiment import (
    ASPECTS,
    OPINIONS,
    TASK,
    quadruple_f1,
    quadruples_in,
)
from deltatune.errors import InputError

WANTED = {"completion": " (parser; code; fast; positive) (none; text; not clear; negative)"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WANTED["completion"], 1),
        ("(none; text; not clear; negative), (parser;code;fast;positive)\n", 1),  # another order
        ("(parser; code; fast; positive)", 2 * 1 / (1 + 2)),
        ("(parser; code; fast; negative)", 0),
        ("(parser; code; fast; positive) " * 2, 2 * 1 / (2 + 2)),  # one of them too many
        ("(parser; code; fast; positive) (none; text)", 2 * 1 / (2 + 2)),
        ("(parser; code; fast; positive", 0),
        ("parser; code; fast; positive", 0),
        ("", 0),
    ],
)
def test_quadruple_f1_equals_hand_count(text: str, expected: float) -> None:
    assert quadruple_f1(text, WANTED) == expected


@pytest.mark.parametrize("difficulty", [1, 2])
def test_aspect_sentiment_quadruples_say_what_the_review_says(difficulty: int) -> None:
    for row in TASK.load(difficulty=difficulty)["test"]:
        review = row["prompt"].removeprefix("review: ").removesuffix(".\nquadruples:")
        clauses = re.split(r", but | and ", review)
        quadruples = quadruples_in(row["completion"])
        assert len(clauses) == len(quadruples) == difficulty
        for clause, (aspect, category, opinion, sentiment) in zip(clauses, quadruples, strict=True):
            assert f" {aspect} " in clause
            assert clause.endswith(f" {opinion}")
            assert ASPECTS[aspect] == category
            assert OPINIONS[opinion] == sentiment


def test_aspect_sentiment_hardest_level_negates_hides_and_counts_to_three() -> None:
    rows = TASK.load(difficulty=3)["train"].to_list()
    turned = {"positive": "negative", "negative": "positive"}
    negated = 0
    for row in rows:
        for aspect, _, opinion, sentiment in quadruples_in(row["completion"]):
            assert f" {opinion}" in row["prompt"]
            assert aspect == "none" or f" {aspect} " in row["prompt"]
            plain = opinion.removeprefix("not ")
            is_negated = plain != opinion
            negated += is_negated
            assert sentiment == (turned[OPINIONS[plain]] if is_negated else OPINIONS[plain])
    counts = Counter(row["number_of_quadruples"] for row in rows)
    # 48 forms take turns: 4 of one, 12 of two, 32 of three statements.
    assert counts == pytest.approx({1: 125, 2: 375, 3: 1000}, abs=32)
    assert negated == pytest.approx(sum(n * counts[n] for n in counts) / 2, rel=0.03)
    assert sum("(none;" in row["completion"] for row in rows) == pytest.approx(
        1500 * 34 / 48, abs=32
    )


def test_aspect_sentiment_implicit_aspect_takes_its_category_from_the_action() -> None:
    found = set()
    for row in TASK.load(difficulty=3)["train"]:
        action = re.search(r"(calling it|reading it|clicking|connecting) was", row["prompt"])
        hidden = [q[1] for q in quadruples_in(row["completion"]) if q[0] == "none"]
        assert len(hidden) == (action is not None)
        if action:
            found.add((action[1], hidden[0]))
    assert found == {
        ("calling it", "code"),
        ("reading it", "text"),
        ("clicking", "interface"),
        ("connecting", "network"),
    }


@pytest.mark.parametrize("difficulty", [2, 3])
def test_aspect_sentiment_names_no_aspect_or_opinion_twice(difficulty: int) -> None:
    for row in TASK.load(difficulty=difficulty)["train"]:
        quadruples = quadruples_in(row["completion"])
        opinions = {quadruple[2].removeprefix("not ") for quadruple in quadruples}
        assert len({quadruple[0] for quadruple in quadruples}) == len(opinions) == len(quadruples)


def test_aspect_sentiment_chance_is_that_of_listing_every_quadruple() -> None:
    every = " ".join(
        f"({aspect}; {ASPECTS[aspect]}; {opinion}; {OPINIONS[opinion]})"
        for aspect in ASPECTS
        for opinion in OPINIONS
    )
    for difficulty in (1, 2):
        rows = TASK.load(difficulty=difficulty, test=20)["test"]
        score = sum(quadruple_f1(every, row) for row in rows) / len(rows)
        assert score == pytest.approx(TASK.level(difficulty).chance, abs=5e-5)  # four decimals


def test_aspect_sentiment_rows_are_pinned() -> None:
    # Another machine or Python has to give this very row.
    row = TASK.load(difficulty=1, test=300)["train"][0]
    assert row["prompt"] == "review: in this version the prompt is nice.\nquadruples:"
    assert row["completion"] == " (prompt; interface; nice; positive)"


def test_aspect_sentiment_refuses_more_reviews_than_the_grammar_has() -> None:
    # 6 openings, 6 frames, 28 aspects, 28 opinions
    with pytest.raises(InputError, match=r"^train=28221 .* has 28224 .* give at most 28220$"):
        TASK.load(difficulty=1, train=28221, validation=2, test=2)

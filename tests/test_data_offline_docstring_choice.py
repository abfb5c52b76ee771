"""Docstring matching for nano: one right name among those listed, packages kept apart."""

from __future__ import annotations

import pytest

from deltatune.data.offline.docstring_choice import CHOICES, TASK
from deltatune.data.offline.documented_functions import words
from deltatune.errors import InputError

SIZES = {"train": 60, "validation": 20, "test": 30}


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_docstring_choice_offers_one_name_that_tells_of_the_docstring(difficulty: int) -> None:
    for row in TASK.load(difficulty=difficulty, **SIZES)["test"]:
        listed, docstring, last = row["prompt"].split("\n")
        names = listed.split(", ")
        assert last == "def"
        assert len(set(names)) == CHOICES[difficulty - 1]
        assert [name for name in names if words(name) & words(docstring)] == [row["answer"]]
        assert row["completion"] == f" {row['answer']}"


def test_docstring_choice_puts_the_answer_at_every_place() -> None:
    rows = TASK.load(difficulty=1, **SIZES)["train"]
    first = sum(row["prompt"].startswith(f"{row['answer']},") for row in rows)
    assert 15 <= first <= 45  # of 60 at chance 1/2, within four standard deviations of 3.9


def test_docstring_choice_packages_lie_in_one_split() -> None:
    splits = TASK.load(**SIZES)
    packages = [
        {module.partition(".")[0].lstrip("_") for module in splits[split]["module"]}
        for split in splits
    ]
    assert not packages[0] & packages[1]
    assert not packages[0] & packages[2]
    assert not packages[1] & packages[2]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (" read_line", 1),
        (" read_line(self):\n", 1),
        (" read_lines", 0),
        (" read", 0),
        (" read_line, x", 0),
        ("", 0),
    ],
)
def test_docstring_choice_score_reads_the_first_name(text: str, score: int) -> None:
    assert TASK.score is not None
    assert TASK.score(text, {"answer": "read_line"}) == score


def test_docstring_choice_names_how_many_there_are() -> None:
    with pytest.raises(InputError, match=r"^train=90000 is not allowed: .* gives \d+ such"):
        TASK.load(train=90_000)

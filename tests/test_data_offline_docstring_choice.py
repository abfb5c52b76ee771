"""Docstring matching for nano: one right name among those listed, packages kept apart."""

from __future__ import annotations

import pytest

from deltatune.data.offline.docstring_choice import CHOICES, TASK, spoken
from deltatune.data.offline.documented_functions import words
from deltatune.errors import InputError

SIZES = {"train": 60, "validation": 20, "test": 30}


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_docstring_choice_offers_one_name_that_tells_of_the_docstring(difficulty: int) -> None:
    for row in TASK.load(difficulty=difficulty, **SIZES)["test"]:
        docstring, listed, last = row["prompt"].split("\n")
        names = listed.removeprefix("functions: ").split(", ")
        said = words(docstring.removeprefix("docstring: "))
        assert last == "answer:"
        assert len(set(names)) == CHOICES[difficulty - 1]
        assert [name for name in names if words(name) & said] == [spoken(row["name"])]
        assert row["completion"] == f" {spoken(row['name'])}"


def test_docstring_choice_puts_the_answer_at_every_place() -> None:
    rows = TASK.load(difficulty=1, **SIZES)["train"]
    first = sum(f"functions:{row['completion']}," in row["prompt"] for row in rows)
    assert 15 <= first <= 45  # of 60 at chance 1/2, within four standard deviations of 3.9


def test_docstring_choice_asks_again_among_other_names_when_functions_run_out() -> None:
    rows = TASK.load()["train"]
    assert len(set(rows["name"])) < len(rows) == len(set(rows["prompt"]))


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
        (" read line", 1),
        (" read  line\nand more", 1),
        (" read lines", 0),
        (" read", 0),
        (" read line, x", 0),
        ("", 0),
    ],
)
def test_docstring_choice_score_reads_the_first_line(text: str, score: int) -> None:
    assert TASK.score is not None
    assert TASK.score(text, {"name": "_readLine"}) == score


def test_docstring_choice_names_how_many_there_are() -> None:
    with pytest.raises(InputError, match=r"^train=90000 is not allowed: .* gives \d+ such"):
        TASK.load(train=90_000)

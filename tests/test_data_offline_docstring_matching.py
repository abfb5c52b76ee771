"""Docstring matching: balanced, without leaks, not solved by a cheat, the same at every call."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections import Counter
from pathlib import Path

import datasets
import pytest

from deltatune.data.offline.docstring_matching import (
    docstring_matching,
    word_overlap_accuracy,
)
from deltatune.data.offline.docstring_pairs import told_apart
from deltatune.data.offline.documented_functions import documented_functions, words
from deltatune.errors import InputError

NOUNS = (
    "apple bridge candle desert engine forest garden harbour island jungle kettle ladder".split()
)
VERBS = "carry divide empty fasten gather hide invite join".split()
COLOURS = "amber black crimson drab ebony fawn golden hazel".split()


def write_module(path: Path, number: int) -> None:
    """Write eight documented functions whose texts occur in no other module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noun, row = NOUNS[number % 12], "abcdefgh"[number // 12]
    lines = []
    for i, verb in enumerate(VERBS):
        lines.append(f"def {verb}_{noun}(value):")
        lines.append(f'    """{verb.title()} every {noun} of {COLOURS[i]} row{row}."""')
        lines.append(f"    return value + {number * 10 + i}  # a comment")
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of 20 modules: 160 functions, 4 of each 8 in rows."""
    for number in range(20):
        write_module(tmp_path / f"module{number:02}.py", number)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tmp_path


@pytest.fixture(scope="module")
def real() -> datasets.DatasetDict:
    """The task at its default size, built once: parsing the real library takes about 4 s."""
    return docstring_matching()


def rows(dataset: datasets.DatasetDict) -> dict[str, list[dict[str, object]]]:
    return {split: dataset[split].to_list() for split in dataset}


def test_docstring_matching_has_the_asked_sizes_and_named_labels(
    real: datasets.DatasetDict,
) -> None:
    assert {split: len(real[split]) for split in real} == {
        "train": 2500,
        "validation": 300,
        "test": 600,
    }
    assert real["train"].column_names == ["function", "docstring", "label", "module"]
    assert real["train"].features["label"].names == ["other", "match"]


def test_docstring_matching_majority_is_chance(real: datasets.DatasetDict) -> None:
    for split in real:
        counts = Counter(real[split]["label"][:])
        assert counts[0] == counts[1]


@pytest.mark.parametrize("column", ["function", "docstring"])
def test_docstring_matching_text_occurs_once(real: datasets.DatasetDict, column: str) -> None:
    texts = [text for split in real for text in real[split][column][:]]
    assert len(set(texts)) == len(texts)


def test_docstring_matching_packages_stay_in_one_split(real: datasets.DatasetDict) -> None:
    packages = [{name.partition(".")[0] for name in real[split]["module"][:]} for split in real]
    assert not packages[0] & packages[1]
    assert not packages[0] & packages[2]
    assert not packages[1] & packages[2]
    assert min(len(names) for names in packages) >= 10  # no package fills more than a tenth


def test_docstring_matching_functions_hold_no_docstring_or_comment(
    real: datasets.DatasetDict,
) -> None:
    whole = [text for text in real["test"]["function"][:] if len(text) < 120]  # a cut is longer
    assert len(whole) > 100
    for text in whole:
        definition = ast.parse(text).body[0]
        assert ast.get_docstring(definition) is None  # type: ignore[arg-type]
        assert ast.unparse(definition) == text  # unparsing writes no comments


def test_docstring_matching_length_tells_next_to_nothing(real: datasets.DatasetDict) -> None:
    def longer_function_is_match(threshold: float) -> float:
        hits = [
            (len(row["docstring"]) / len(row["function"]) < threshold) == row["label"]
            for row in real["test"]
        ]
        return sum(hits) / len(hits)

    best = max(longer_function_is_match(step / 20) for step in range(1, 60))
    assert best < 0.6  # 600 examples: 0.56 is two standard errors above 0.5, and 59 are tried


def test_word_overlap_accuracy_lies_between_chance_and_solved(real: datasets.DatasetDict) -> None:
    assert 0.55 < word_overlap_accuracy(real) < 0.85  # 0.70 on Python 3.11


def test_docstring_matching_is_the_same_at_every_call(library: Path) -> None:
    first = rows(docstring_matching(train=24, validation=4, test=8))
    random.seed(99)
    assert rows(docstring_matching(train=24, validation=4, test=8)) == first
    assert rows(docstring_matching(seed=1, train=24, validation=4, test=8)) != first


def test_docstring_matching_other_is_a_docstring_of_the_same_module(library: Path) -> None:
    owner = {f.docstring: (f.module, f.source) for f in documented_functions(library)}
    for row in docstring_matching(train=24, validation=4, test=8)["train"]:
        module, source = owner[row["docstring"]]
        assert module == row["module"]
        assert (source == row["function"]) == (row["label"] == 1)


@pytest.mark.parametrize("size", [2, 5, 7])
def test_docstring_matching_is_balanced_within_one_when_cut(library: Path, size: int) -> None:
    labels = docstring_matching(train=size, validation=4, test=4)["train"]["label"][:]
    assert len(labels) == size
    assert abs(labels.count(0) - labels.count(1)) <= 1


def test_word_overlap_accuracy_equals_hand_count() -> None:
    def split(*pairs: tuple[str, str, int]) -> datasets.Dataset:
        names = ("docstring", "function", "label")
        return datasets.Dataset.from_list([dict(zip(names, pair, strict=True)) for pair in pairs])

    train = split(("open file", "def open_file", 1), ("open door", "def open_file", 0))
    test = split(
        ("Close the lastRow", "def close_last_row", 1),  # 3 of 3 words: match
        ("Close the row", "def close", 1),  # 1 of 2: other, wrong
        ("Move it far", "def close", 0),  # none
        ("Close", "def close", 0),  # 1 of 1: match, wrong
    )
    # The shares of the training split are 1 (match) and 1/2 (other): the threshold is 1.
    assert word_overlap_accuracy(datasets.DatasetDict(train=train, test=test)) == 0.5


def test_documented_functions_pass_over_what_is_no_use(tmp_path: Path) -> None:
    write_module(tmp_path / "test" / "inside.py", 0)
    write_module(tmp_path / "site-packages" / "inside.py", 1)
    (tmp_path / "broken.py").write_text("def broken(:\n", encoding="utf-8")
    (tmp_path / "nulls.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "coding.py").write_bytes(b"# -*- coding: no-such -*-\nx = 1\n")
    (tmp_path / "good.py").write_text(
        "class Shelf:\n"
        "    def bare(self): return 1\n"
        '    def short(self):\n        """Yes."""\n        return 2\n'
        '    def only_text(self):\n        """Give back every lost book."""\n'
        '    def shown(self):\n        r"""Give \\d books\n        back today.\n\n'
        '        More."""\n'
        '        def inner():\n            """Secret words inside here."""\n'
        '        return "\\d", inner  # why\n'
        '    def again(self):\n        """Today, give \\d books back."""\n        return 4\n',
        encoding="utf-8",
    )
    (found,) = documented_functions(tmp_path)
    assert (found.module, found.name) == ("good", "shown")
    assert found.docstring == r"Give \d books back today."
    assert found.source.splitlines()[:3] == ["def shown(self):", "", "    def inner():"]
    assert "Secret" not in found.source
    assert "why" not in found.source


def test_docstring_matching_refuses_when_the_library_is_too_small(library: Path) -> None:
    with pytest.raises(InputError, match=r"^train=500 is not allowed: .* gives \d+ such examples"):
        docstring_matching(train=500, validation=4, test=8)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_docstring_matching_refuses_a_split_below_two(split: str) -> None:
    with pytest.raises(InputError, match=f"^{split}=1 is not allowed: give at least 2"):
        docstring_matching(**{split: 1})


def test_docstring_matching_refuses_a_difficulty_that_there_is_not() -> None:
    with pytest.raises(InputError, match=r"^difficulty=4 is not allowed: give 1 to 3"):
        docstring_matching(difficulty=4)


def test_docstring_matching_middle_level_takes_any_docstring_of_the_module(library: Path) -> None:
    owner = {f.docstring: (f.module, f.source) for f in documented_functions(library)}
    for row in docstring_matching(difficulty=2, train=24, validation=4, test=8)["train"]:
        module, source = owner[row["docstring"]]
        assert module == row["module"]
        assert (source == row["function"]) == (row["label"] == 1)


def test_docstring_matching_easiest_level_has_no_common_word_with_the_other(library: Path) -> None:
    owner = {f.docstring: f.module for f in documented_functions(library)}
    built = docstring_matching(difficulty=1, train=24, validation=4, test=8)
    texts = [text for split in built for text in built[split]["docstring"][:]]
    assert len(set(texts)) == len(texts) == 36
    for row in built["train"]:
        is_other = row["label"] == 0
        assert (owner[row["docstring"]] != row["module"]) == is_other
        assert (not words(row["docstring"]) & words(row["function"])) == is_other
    assert Counter(built["train"]["label"][:]) == {0: 12, 1: 12}


def test_told_apart_leaves_out_what_finds_no_unrelated_docstring() -> None:
    given = [
        ("def close_door", "Open the window", 0, "house"),
        ("def lock", "Lock a gate", 1, "house"),
        ("def open_window", "Close the door", 0, "garden"),
        ("def paint", "Paint a wall", 1, "garden"),
    ]
    assert told_apart(given) == []  # each is the other's own docstring: all words in common
    away = [("def sing", "Sing a song", 0, "stage"), ("def dance", "Dance a waltz", 1, "stage")]
    # "close door" takes the song, "open window" nothing, "sing" the first docstring left: it must
    # be of another module and share no word.
    assert told_apart([*given, *away]) == [
        ("def close_door", "Sing a song", 0, "house"),
        ("def lock", "Lock a gate", 1, "house"),
        ("def sing", "Open the window", 0, "stage"),
        ("def paint", "Paint a wall", 1, "garden"),
    ]


def test_docstring_matching_refuses_a_python_without_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(InputError, match=r"^this Python has no sources of its standard library"):
        docstring_matching()

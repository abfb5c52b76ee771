"""Bug repair: one fault of its kind, held-out functions for testing, and every answer repairs."""

from __future__ import annotations

import ast
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from deltatune.data.offline.bug_repair import TASK, exact_match, repaired_function
from deltatune.data.offline.injected_faults import MEANING, SPELLING, Kinds, faults_of
from deltatune.data.offline.repaired_doctests import passes_doctest
from deltatune.data.offline.short_functions import Function, short_functions
from deltatune.data.offline.standard_library import is_held_out
from deltatune.errors import InputError

NAMES = "apple bridge candle desert engine forest garden harbour island jungle kettle".split()
SIZES = {"train": 30, "validation": 6, "test": 12}


def write_module(folder: Path, number: int) -> None:
    """Write five short functions whose bodies occur in no other module."""
    lines = []
    for i, name in enumerate(NAMES[:5]):
        lines += [
            f"def {name}(value, other=None):",
            f'    """Find the {name}.',
            "",
            "    Second paragraph.",
            '    """',
            f"    if value < {number * 5 + i + 100} and other is not None:",
            "        return value + 2",
            "    return other",
            "",
        ]
    (folder / f"module{number:02}.py").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    for number in range(100):
        write_module(folder, number)
    return folder


@pytest.fixture
def small(library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of 100 modules with 500 functions; a few of them are held out."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    return library


def function_of(text: str, first_line: int = 1) -> Function:
    return Function(path="m.py", name="f", text=text, first_line=first_line, body=text, doctest="")


def faulty_lines(kind: str, text: str, first_line: int = 1) -> set[str]:
    """Every line that a kind of fault may leave, over many seeds."""
    group: Kinds = {kind: {**SPELLING, **MEANING}[kind]}
    return {
        fault.text.strip()
        for seed in range(40)
        for fault in faults_of(
            function_of(text, first_line), [group], torch.Generator().manual_seed(seed)
        )
    }


@pytest.mark.parametrize(
    ("kind", "line", "expected"),
    [
        (
            "misspelt keyword",
            "return a",
            {"erturn a", "rteurn a", "reutrn a", "retrun a", "retunr a"},
        ),
        ("missing bracket", "return b(a)", {"return b(a", "def f(a, b:"}),
        ("missing colon", "return a", {"def f(a, b)"}),
        ("single equals sign", "return a == b", {"return a = b"}),
        ("repeated word", "x = a", {"x x = a", "x = a a"}),
        ("swapped comparison", "return a <= b", {"return a >= b"}),
        ("wrong operator", "return -a * b", {"return -a / b"}),
        ("and for or", "return a and b", {"return a or b"}),
        ("off by one", "return a[0]", {"return a[1]"}),
        ("negated condition", "while not a: b()", {"while a: b()"}),
        ("negated condition", "if a and b: b()", set()),  # "not a and b" would negate but a half
        ("wrong name", "return a", {"return b"}),
        ("missing return", "return a + b", {"a + b"}),
        ("swapped arguments", "return max(a, 1)", {"return max(1, a)"}),
        ("swapped arguments", "return max(a, a)", set()),
    ],
)
def test_fault_changes_a_line_as_its_kind_says(kind: str, line: str, expected: set[str]) -> None:
    assert faulty_lines(kind, f"def f(a, b):\n    {line}") == expected


def test_misspelt_name_still_stands_elsewhere() -> None:
    text = "def f(value, number):\n    return value - once"
    assert faulty_lines("misspelt name", text) == {
        f"return {wrong} - once" for wrong in ("avlue", "vlaue", "vaule", "valeu")
    }


def test_faults_leave_signature_and_docstring_alone_but_for_brackets_and_colons() -> None:
    text = 'def f(value, b=3):\n    """Return the value == 3 and value."""\n    return value'
    group = {name: SPELLING[name] for name in SPELLING if name not in CLOSED} | dict(MEANING)
    found = {
        fault.line
        for seed in range(20)
        for fault in faults_of(function_of(text, 2), [group], torch.Generator().manual_seed(seed))
    }
    assert found == {2}


CLOSED = ("missing colon", "missing bracket")


@pytest.fixture(params=(1, 2, 3))
def built(request: pytest.FixtureRequest, small: Path) -> datasets.DatasetDict:
    return TASK.load(difficulty=request.param, **SIZES)


def all_rows(dataset: datasets.DatasetDict) -> list[dict[str, Any]]:
    return [row for split in dataset.values() for row in split.to_list()]


def test_bug_repair_answers_repair_and_the_faulty_function_does_not(
    built: datasets.DatasetDict,
) -> None:
    for row in all_rows(built):
        repaired = repaired_function(row["completion"], row)
        (definition,) = ast.parse(repaired).body
        assert isinstance(definition, ast.FunctionDef)
        assert definition.name == row["name"]
        assert repaired != row["function"]
        assert row["prompt"].startswith(f"{row['function']}\n# repaired ")
        assert passes_doctest(row["completion"], row)  # it parses; there is nothing to run
        assert exact_match(f"\n{row['completion']} \n", row) == 1
        assert exact_match(row["function"], row) == 0
        assert "Second paragraph" not in row["prompt"]
        if row["fault"] in MEANING:
            ast.parse(row["function"])


def test_bug_repair_tests_on_files_that_no_base_has_seen(built: datasets.DatasetDict) -> None:
    for split, rows in built.items():
        assert {is_held_out(path) for path in rows["path"]} == {split != "train"}
    functions = [{(row["path"], row["name"]) for row in rows} for rows in built.values()]
    assert not functions[1] & functions[2]


def test_bug_repair_easiest_level_has_faults_of_spelling_only(small: Path) -> None:
    assert set(TASK.load(difficulty=1, **SIZES)["train"]["fault"]) <= set(SPELLING)


def test_bug_repair_begins_as_often_with_a_fault_of_meaning(small: Path) -> None:
    counts = Counter(TASK.load(difficulty=2, **{**SIZES, "train": 400})["train"]["fault"])
    meaning = sum(counts[kind] for kind in MEANING) / 400
    assert abs(meaning - 0.5) < 0.075  # three standard errors of 400 draws


def test_bug_repair_is_the_same_at_every_call_and_differs_by_seed(small: Path) -> None:
    first = all_rows(TASK.load(**SIZES))
    torch.manual_seed(99)
    assert all_rows(TASK.load(**SIZES)) == first
    assert all_rows(TASK.load(seed=1, **SIZES)) != first


def test_bug_repair_uses_functions_again_only_when_all_are_used(small: Path) -> None:
    number = sum(is_held_out(f"module{number:02}.py") for number in range(100)) * 5
    kept = round(number * 2 / 3)
    rows = TASK.load(**{**SIZES, "test": kept + 3})["test"].to_list()
    counts = Counter((row["path"], row["name"]) for row in rows)
    assert len(counts) == kept
    assert sorted(counts.values())[-4:] == [1, 2, 2, 2]
    assert len({row["prompt"] for row in rows}) == kept + 3


def test_bug_repair_refuses_more_examples_than_there_are(small: Path) -> None:
    with pytest.raises(InputError, match=r"^test=9999 is not allowed: .* finds \d+ diff") as info:
        TASK.load(**{**SIZES, "test": 9999})
    possible = int(str(info.value).split(" finds ")[1].split()[0])
    assert len(TASK.load(**{**SIZES, "test": possible})["test"]) == possible


def test_bug_repair_refuses_a_python_without_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(InputError, match=r"^this Python has no sources of its standard library"):
        TASK.load()


def test_short_functions_keep_the_layout_and_one_line_of_the_docstring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    (tmp_path / "shelf.py").write_text(
        "class Shelf:\n"
        "    @property\n"
        "    def first(self):\n"
        "        '''The first book.\n\n        >>> 1\n        1\n        '''\n"
        "        # a comment\n"
        "        return self.books[ 0 ]\n\n"
        "    def empty(self): return 1\n"
        "    def nothing(self):\n        pass\n"
        "    def only_text(self):\n        '''Say nothing.'''\n"
        "    def long(self):\n" + "        self.step()\n" * 8 + "    def words(self):\n"
        '        return """two\n        lines"""\n'
        "def count():\n    '''Count.\n\n    >>> count()\n    3\n    '''\n    return 3\n",
        encoding="utf-8",
    )
    first, count = short_functions("shelf.py")
    assert first.text.split("\n") == [
        "def first(self):",
        '    """The first book."""',
        "    # a comment",
        "    return self.books[ 0 ]",
    ]
    assert (first.first_line, first.doctest) == (3, "")  # a method cannot run alone
    assert (count.name, count.first_line) == ("count", 2)
    assert count.doctest == "Count.\n\n>>> count()\n3"


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("return letter.upper() + string.digits[2]", True),  # the names of its module are there
        ("return letter", False),
        ("return (", False),
        ("while True: pass", False),  # ends at the time limit
    ],
)
def test_passes_doctest_runs_the_repaired_function(answer: str, passes: bool) -> None:
    row = {
        "path": "tempfile.py",
        "name": "mark",
        "function": "def mark(letter):\n    import string\n    return letter",
        "line": 2,
        "doctest": "Mark.\n\n>>> mark('a'), _os.curdir\n('A2', '.')",
    }
    assert passes_doctest(answer, row, seconds=60.0 if passes else 1.0) == passes


def test_passes_doctest_runs_nothing_but_one_function() -> None:
    row = {"path": "abc.py", "name": "f", "function": "", "line": -1, "doctest": ">>> 1\n1"}
    assert not passes_doctest("import os", row)
    assert not passes_doctest("def f(): pass\ndef g(): pass", row)

"""Find and repair the one fault of a real function, taken from Python's own standard library."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import datasets

from deltatune.data import yardstick
from deltatune.data.offline.injected_faults import MEANING, SPELLING, Fault, Kinds, faults_of
from deltatune.data.offline.offline_task import Level, OfflineTask
from deltatune.data.offline.short_functions import Function, short_functions
from deltatune.data.offline.standard_library import is_held_out, source_paths
from deltatune.errors import InputError
from deltatune.seeds import generator_for, shuffled

__all__ = ["TASK", "bug_repair", "exact_match", "repaired_function"]

WHOLE = -1  # in the column `line`: the completion is the whole function
MOST_OF_A_FILE = 20  # functions, so that no file fills a split
TEST_SHARE = 2 / 3  # of the held-out functions; the rest is for validation


@dataclass(frozen=True)
class Form:
    """What one difficulty takes and asks.

    Args:
        groups: of kinds of faults.
        most_lines: of a function, its docstring's line included.
        longest: characters of a function.
        is_whole: the answer is the whole function, not one line.
    """

    groups: tuple[Kinds, ...]
    most_lines: int
    longest: int
    is_whole: bool = False

    def takes(self, function: Function) -> bool:
        """Tell whether a function is short enough."""
        return function.text.count("\n") < self.most_lines and len(function.text) <= self.longest


FORMS = (
    Form((SPELLING,), most_lines=5, longest=180),
    Form((SPELLING, MEANING), most_lines=8, longest=300),
    Form((SPELLING, MEANING), most_lines=6, longest=200, is_whole=True),
)


def bug_repair(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    """Build the task from the sources of the running Python; they are parsed, never executed.

    One fault is injected into a short function. Test and validation take functions of files that no
    base saw in its pre-training (`standard_library.is_held_out`), training those of other files; a
    body occurs in one split only. A function is used again, with a fault of another kind, only once
    all others have been used. (A base may have seen the very text of a held-out function where the
    library holds it twice.)

    Args:
        sizes: split -> number of examples.
        seed: of the choice of functions and faults, and of the order.
        difficulty: 1 to 3.

    Returns:
        Splits with the columns `prompt`, `completion`, `fault` (its kind), `path` and `name` of the
        function, `function` (the faulty text), `line` (index of the faulty line, or -1 where the
        completion is the whole function) and `doctest` (the function's docstring where it can be
        run, else empty; see `repaired_doctests.passes_doctest`).

    Raises:
        InputError: no sources of the library, or more examples than it has.
    """
    form = FORMS[difficulty - 1]
    name = f"bug-repair of difficulty {difficulty}"
    paths = shuffled(source_paths(), generator_for(seed, f"{name} files"))
    held_out = _distinct(_functions([p for p in paths if is_held_out(p)], form, seed), set())
    kept = shuffled(list(held_out), generator_for(seed, f"{name} held out"))
    cut = round(len(kept) * TEST_SHARE)
    others = _functions((path for path in paths if not is_held_out(path)), form, seed)
    pools: dict[str, Iterable[Function]] = {
        "test": kept[:cut],
        "validation": kept[cut:],
        "train": _distinct(others, {function.body for function in kept}),
    }
    prompts: set[str] = set()
    splits = {}
    for split, pool in pools.items():
        found = _new_rows(_rows(pool, form, seed), prompts)
        rows = list(itertools.islice(found, sizes[split]))
        if len(rows) < sizes[split]:
            raise InputError(
                f"{split}={sizes[split]} is not allowed: {name} finds {len(rows)} different "
                "examples for it in the standard library of this Python; give at most that many"
            )
        generator = generator_for(seed, f"{name} {split}")
        splits[split] = datasets.Dataset.from_list(shuffled(rows, generator))
    return datasets.DatasetDict({split: splits[split] for split in sizes})


def exact_match(text: str, row: Mapping[str, Any]) -> float:
    """Return 1 where a text is the repair, white space at its ends aside, else 0.

    Args:
        text: what was generated.
        row: a row of the task.
    """
    return yardstick.exact_match(text, row["completion"])


def repaired_function(text: str, row: Mapping[str, Any]) -> str:
    """Return the whole function with an answer put in place.

    Args:
        text: what was generated.
        row: a row of the task.
    """
    if row["line"] == WHOLE:
        return text.strip()
    lines = row["function"].split("\n")
    old = lines[row["line"]]
    lines[row["line"]] = old[: len(old) - len(old.lstrip())] + text.strip()
    return "\n".join(lines)


def _functions(paths: Iterable[str], form: Form, seed: int) -> Iterator[Function]:
    """Yield the functions that a form takes, at most `MOST_OF_A_FILE` of each file."""
    for path in paths:
        fitting = [function for function in short_functions(path) if form.takes(function)]
        yield from shuffled(fitting, generator_for(seed, f"bug-repair {path}"))[:MOST_OF_A_FILE]


def _distinct(functions: Iterable[Function], bodies: set[str]) -> Iterator[Function]:
    """Yield the functions whose body occurred neither before nor among the given ones."""
    for function in functions:
        if function.body not in bodies:
            bodies.add(function.body)
            yield function


def _rows(functions: Iterable[Function], form: Form, seed: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each function, then a second one for each that allows it, and so on."""
    waiting = []
    for function in functions:
        generator = generator_for(seed, f"bug-repair {function.text}")
        faults = faults_of(function, form.groups, generator)
        fault = next(faults, None)
        if fault is not None:
            yield _row(function, fault, form)
            waiting.append((function, faults))
    while waiting:
        for turn in tuple(waiting):
            fault = next(turn[1], None)
            if fault is None:
                waiting.remove(turn)
            else:
                yield _row(turn[0], fault, form)


def _row(function: Function, fault: Fault, form: Form) -> dict[str, Any]:
    lines = function.text.split("\n")
    repaired = lines[fault.line].strip()
    lines[fault.line] = fault.text
    faulty = "\n".join(lines)
    return {
        "prompt": f"{faulty}\n# repaired {'function' if form.is_whole else 'line'}:",
        "completion": f"\n{function.text}" if form.is_whole else f" {repaired}",
        "fault": fault.kind,
        "path": function.path,
        "name": function.name,
        "function": faulty,
        "line": WHOLE if form.is_whole else fault.line,
        "doctest": function.doctest,
    }


def _new_rows(rows: Iterable[dict[str, Any]], prompts: set[str]) -> Iterator[dict[str, Any]]:
    """Yield rows whose prompt is new: two functions may become alike through their faults."""
    for row in rows:
        if row["prompt"] not in prompts:
            prompts.add(row["prompt"])
            yield row


# Chance is the share of the commonest line, `def setUp(self):`. The ceiling of levels 2 and 3: one
# reader saw 40 faults of meaning without the answers (level 2, seed 0, test) and could tell 38.5 of
# them from the text alone, a guess between two counted as a half; half of all faults are such.
TASK = OfflineTask(
    name="bug-repair",
    title="Repair the one fault of a function of Python's standard library",
    kind="completion",
    base="deltatune/nano",
    metric="exact_match",
    levels=(
        Level(what="broken spelling or brackets, up to 5 lines; answer: the line", chance=0.03),
        Level(
            what="wrong meaning as well, up to 8 lines; answer: the line", chance=0.02, ceiling=0.98
        ),
        Level(
            what="wrong meaning as well, up to 6 lines; answer: the function",
            chance=0.0,
            ceiling=0.98,
        ),
    ),
    difficulty=1,
    sizes=MappingProxyType({"train": 800, "validation": 150, "test": 200}),
    columns=MappingProxyType({"prompt": "prompt", "completion": "completion"}),
    build=bug_repair,
    score=exact_match,
    answer_tokens=144,
)

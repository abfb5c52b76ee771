"""Which of these functions does the docstring describe? From Python's own standard library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import datasets
import torch

from deltatune.data.offline.distinct_examples import DRAWING_ORDER
from deltatune.data.offline.documented_functions import Function, documented_functions, package_of
from deltatune.data.offline.offline_task import Level, OfflineTask
from deltatune.data.offline.standard_library import check_enough, library_folder
from deltatune.seeds import generator_for, seed_for, shuffled

__all__ = ["TASK", "docstring_choice"]

CHOICES = (2, 4, 8)  # by difficulty
TRIES = 200  # drawn names until one tells nothing of the docstring
NAMED = re.compile(r"\s*(\w+)\s*(?:[(:].*)?$", re.MULTILINE)  # and no second name behind it


def docstring_choice(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    """Build the task from the sources of the running Python; they are parsed, never executed.

    The prompt lists names of functions in random order and a docstring; the completion is the name
    of its function, which shares a word with it. No other name that does is offered beside it, so
    there is one right answer. Whole packages go to one split, chosen by a hash of seed and name.
    The base has read these sources: the task is to use what it knows of names and docstrings.

    Args:
        sizes: split -> number of examples.
        seed: of the splits, the choices and the order.
        difficulty: 1 to 3.

    Raises:
        InputError: more examples than the standard library has, or a Python without its sources.
    """
    functions = documented_functions(library_folder())
    fitting = [function for function in functions if function.name_words & function.docstring_words]
    splits = {}
    for split, members in _by_split(fitting, sizes, seed).items():
        generator = generator_for(seed, f"docstring_choice {difficulty} {split}")
        mixed = shuffled(members, generator)
        rows = (_row(f, mixed, CHOICES[difficulty - 1], generator) for f in mixed)
        found = [row for row in rows if row is not None][: sizes[split]]
        check_enough(split, sizes[split], len(found), "examples beside the other splits")
        splits[split] = datasets.Dataset.from_list(found)
    return datasets.DatasetDict({split: splits[split] for split in sizes})


def _by_split(
    functions: Sequence[Function], sizes: Mapping[str, int], seed: int
) -> dict[str, list[Function]]:
    """Deal whole packages out: test and validation until they are full, training the rest."""
    packages: dict[str, list[Function]] = {}
    for function in functions:
        packages.setdefault(package_of(function.module), []).append(function)
    splits: dict[str, list[Function]] = {split: [] for split in DRAWING_ORDER}
    waiting = sorted(packages, key=lambda package: seed_for(seed, package))
    for package in waiting:
        unfilled = [s for s in DRAWING_ORDER[:-1] if len(splits[s]) < 2 * sizes[s]]
        splits[unfilled[0] if unfilled else DRAWING_ORDER[-1]] += packages[package]
    return splits


def _row(
    function: Function, others: Sequence[Function], choices: int, generator: torch.Generator
) -> dict[str, Any] | None:
    """Return a row, or None where too few names tell nothing of the docstring."""
    names = [function.name]
    for i in torch.randint(len(others), (TRIES,), generator=generator).tolist():
        other = others[i]
        is_told = other.name_words & (function.docstring_words | function.name_words)
        if len(names) < choices and other.name not in names and not is_told:
            names.append(other.name)
    if len(names) < choices:
        return None
    listed = ", ".join(shuffled(names, generator))
    return {
        "prompt": f'{listed}\n"""{function.docstring}"""\ndef',
        "completion": f" {function.name}",
        "answer": function.name,
        "module": function.module,
    }


def _score(text: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 where the first line names the right function, and no other."""
    found = NAMED.match(text)
    return float(found is not None and found[1] == row["answer"])


TASK = OfflineTask(
    name="docstring-matching",
    title="Choose the function of Python's standard library that a docstring describes",
    kind="completion",
    base="deltatune/nano",
    metric="name_match",
    levels=(
        Level(what="2 functions", chance=1 / 2),
        Level(what="4 functions", chance=1 / 4),
        Level(what="8 functions", chance=1 / 8),
    ),
    difficulty=2,
    sizes=MappingProxyType({"train": 1000, "validation": 150, "test": 200}),
    columns=MappingProxyType({"prompt": "prompt", "completion": "completion"}),
    build=docstring_choice,
    score=_score,
    answer_tokens=16,
)

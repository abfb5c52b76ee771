"""Which of these functions is the docstring of? From Python's own standard library."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import datasets
import torch

from deltatune.data.offline.distinct_examples import DRAWING_ORDER
from deltatune.data.offline.documented_functions import (
    FEWEST_WORDS,
    Function,
    documented_functions,
    package_of,
)
from deltatune.data.offline.offline_task import Level, OfflineTask
from deltatune.data.offline.standard_library import check_enough, library_folder
from deltatune.seeds import generator_for, seed_for, shuffled

__all__ = ["TASK", "docstring_choice"]

CHOICES = (2, 4, 8)  # by difficulty
TRIES = 200  # drawn names until one tells nothing of the docstring
ROUNDS = 4  # at most so often the same function is asked for, among other names each time
SENTENCE = re.compile(r"(?<=[.!?])\s")
PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def docstring_choice(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    """Build the task from the sources of the running Python; they are parsed, never executed.

    The prompt is the first sentence of a docstring and a list of functions in random order; the
    completion is the one that the docstring is of, which shares a word with it. No other name that
    does is offered, so there is one right answer. Names are written as words, in lower case like
    the docstring: to a tokenizer `_line` in a name and ` line` in a sentence are two things, and a
    base as small as this one does not learn from a thousand examples that they are one. Whole
    packages go to one split, chosen by a hash of seed and name. Where a split has fewer functions
    than examples are wanted, they come again among other names.

    Args:
        sizes: split -> number of examples.
        seed: of the splits, the choices and the order.
        difficulty: 1 to 3.

    Raises:
        InputError: more examples than the standard library has, or a Python without its sources.
    """
    functions = documented_functions(library_folder())
    splits = {}
    for split, members in _by_split(_fitting(functions), sizes, seed).items():
        generator = generator_for(seed, f"docstring_choice {difficulty} {split}")
        mixed = shuffled(members, generator)
        asked = itertools.chain.from_iterable([mixed] * ROUNDS)
        rows = (_row(f, mixed, CHOICES[difficulty - 1], generator) for f in asked)
        found = list(itertools.islice((row for row in rows if row is not None), sizes[split]))
        check_enough(split, sizes[split], len(found), "examples beside the other splits")
        splits[split] = datasets.Dataset.from_list(found)
    return datasets.DatasetDict({split: splits[split] for split in sizes})


def spoken(name: str) -> str:
    """Return a name as words.

    >>> spoken("_read_HTTPLine2")
    'read http line 2'
    """
    return " ".join(PARTS.findall(name)).lower()


def _fitting(functions: Sequence[Function]) -> list[Function]:
    """Return each name once, with the first sentence of its docstring, if they share a word."""
    first = {
        spoken(one.name): dataclasses.replace(one, docstring=SENTENCE.split(one.docstring)[0])
        for one in reversed(functions)
    }
    return [
        one
        for one in first.values()
        if one.name_words & one.docstring_words and len(one.docstring_words) >= FEWEST_WORDS
    ]


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
    listed = ", ".join(spoken(name) for name in shuffled(names, generator))
    return {
        "prompt": f"docstring: {function.docstring.lower()}\nfunctions: {listed}\nanswer:",
        "completion": f" {spoken(function.name)}",
        "name": function.name,
        "module": function.module,
    }


def _score(text: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 where the first line is the right function, and nothing else."""
    lines = text.strip().splitlines()
    return float(bool(lines) and " ".join(lines[0].split()) == spoken(row["name"]))


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
    sizes=MappingProxyType({"train": 1500, "validation": 150, "test": 200}),
    columns=MappingProxyType({"prompt": "prompt", "completion": "completion"}),
    build=docstring_choice,
    score=_score,
    answer_tokens=16,
)

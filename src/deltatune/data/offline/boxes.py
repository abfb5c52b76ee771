"""Which object is in the box? Entity tracking with as many boxes as the difficulty says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch

from deltatune.data.offline.distinct_examples import DRAWING_ORDER
from deltatune.data.offline.offline_task import Level, OfflineTask
from deltatune.errors import InputError
from deltatune.seeds import generator_for, shuffled

__all__ = ["LETTERS", "NUMBERS_OF_BOXES", "OBJECTS", "TASK", "BoxSample", "box_samples"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Things of a programmer's world: a base that has read nothing but code knows each as one token,
# which is what work on a model's inside needs.
OBJECTS = tuple(
    "archive array bar bit block buffer bug button byte cache character chunk code color column "
    "dictionary document email entry event field file filter flag font frame function generator "
    "grammar handle header index item iterator key keyword letter library line link list lock "
    "log loop map mark match message method module name node number package patch path pattern "
    "pipe port queue quote reader row script server sign signal slice socket spam stack string "
    "tab table tag target thread token tree tuple variable widget window word wrapper "
    "writer".split()
)
NUMBERS_OF_BOXES = (3, 5, 7)  # by difficulty; 7 are the paper's
# How a clause names box and thing. What follows the letter a second time can be copied from where
# it followed it first; in the paper's order it has to be looked for in front, which `nano` does not
# learn in a few hundred steps.
BOX_FIRST = "Box {letter} has the {thing}"
THING_FIRST = "the {thing} is in Box {letter}"
CLAUSES = (BOX_FIRST, BOX_FIRST, THING_FIRST)  # by difficulty
MARKS = ".,;:!?"


@dataclass(frozen=True)
class BoxSample:
    """A question about one box of a context.

    Args:
        context_id: number of the context; samples of one context share it.
        objects: one for each box, all different, in the order of the clauses.
        letters: the boxes' names, all different, in the same order.
        query_index: which box is asked for, from 0 up.
        clause: how a box's content is told, with `{thing}` and `{letter}` in it.
    """

    context_id: int
    objects: tuple[str, ...]
    letters: tuple[str, ...]
    query_index: int
    clause: str = THING_FIRST

    @property
    def query_letter(self) -> str:
        """The letter of the box that is asked for."""
        return self.letters[self.query_index]

    @property
    def answer(self) -> str:
        """The object in that box."""
        return self.objects[self.query_index]

    @property
    def prompt(self) -> str:
        """The clauses and the beginning of the sentence that the answer completes."""
        pairs = zip(self.objects, self.letters, strict=True)
        clauses = ", ".join(self.clause.format(thing=t, letter=letter) for t, letter in pairs)
        return f"{clauses[0].upper()}{clauses[1:]}. Box {self.query_letter} contains the"

    def row(self) -> dict[str, Any]:
        """Return the sample as a row of a data set."""
        return {
            "prompt": self.prompt,
            "completion": f" {self.answer}",
            "answer": self.answer,
            "context_id": self.context_id,
            "query_index": self.query_index,
            "objects": list(self.objects),
            "letters": list(self.letters),
        }


def box_samples(
    boxes: int, *, seed: int = 0, objects: Sequence[str] = OBJECTS, clause: str = THING_FIRST
) -> Iterator[BoxSample]:
    """Yield samples; `boxes` at a time share a context, and each asks for another box of it.

    No two contexts say the same in another order. With all letters and the objects of this file
    there are over a thousand million contexts of three boxes; the samples end with the contexts.

    Args:
        boxes: boxes of a context, from 2 to the number of letters.
        seed: of all choices.
        objects: what can be in a box. Work on a model's inside passes those that are one token.
        clause: how a box's content is told; the paper's way if not given.

    Raises:
        InputError: too few boxes, more of them than letters or objects, or an object twice.

    Source: Prakash, Shaham, Haklay, Belinkov, Bau 2024, "Fine-Tuning Enhances Existing Mechanisms:
        A Case Study on Entity Tracking", arXiv 2402.14811, the form of the prompts and seven boxes;
        the objects and fewer boxes are our own.
    """
    _check(boxes, objects)
    return (
        BoxSample(context_id, things, letters, query_index, clause)
        for context_id, (things, letters) in enumerate(_contexts(boxes, objects, seed))
        for query_index in range(boxes)
    )


def _check(boxes: int, objects: Sequence[str]) -> None:
    if len(set(objects)) < len(objects):
        raise InputError(f"objects = {list(objects)!r} is not allowed: each may occur only once")
    most = min(len(LETTERS), len(objects))
    if not 2 <= boxes <= most:
        raise InputError(
            f"boxes={boxes} is not allowed: give a whole number from 2 to {most} = "
            "min(letters, objects)"
        )


def _contexts(
    boxes: int, objects: Sequence[str], seed: int
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    generator = generator_for(seed, f"boxes {boxes}")
    possible = math.comb(len(objects), boxes) * math.perm(len(LETTERS), boxes)
    seen: set[frozenset[tuple[str, str]]] = set()
    while len(seen) < possible:
        things = _some(objects, boxes, generator)
        letters = _some(LETTERS, boxes, generator)
        context = frozenset(zip(things, letters, strict=True))
        if context not in seen:
            seen.add(context)
            yield things, letters


def _some(items: Sequence[str], number: int, generator: torch.Generator) -> tuple[str, ...]:
    return tuple(shuffled(items, generator)[:number])


def _build(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    """Give each split contexts of its own; `LARGEST` examples are far fewer than there are."""
    boxes = NUMBERS_OF_BOXES[difficulty - 1]
    samples = box_samples(boxes, seed=seed, clause=CLAUSES[difficulty - 1])
    splits = {}
    for split in DRAWING_ORDER:
        whole_groups = -(-sizes[split] // boxes) * boxes  # what a cut group lacks is lost
        rows = [sample.row() for sample in itertools.islice(samples, whole_groups)]
        splits[split] = datasets.Dataset.from_list(rows[: sizes[split]])
    return datasets.DatasetDict({split: splits[split] for split in sizes})


def _score(text: str, row: Mapping[str, Any]) -> float:
    first = next(iter(text.split()), "")
    return float(first.rstrip(MARKS) == row["answer"])


TASK = OfflineTask(
    name="boxes",
    title="Entity tracking: name the object that is in the box asked for",
    kind="completion",
    base="deltatune/nano",
    metric="first_word_match",
    # Stricter than a guess that never reads: it knows which objects there are, not what is where.
    levels=tuple(
        Level(
            what=f"{boxes} boxes, {'box' if clause == BOX_FIRST else 'object'} first; chance takes "
            "any object of the prompt",
            chance=1 / boxes,
        )
        for boxes, clause in zip(NUMBERS_OF_BOXES, CLAUSES, strict=True)
    ),
    difficulty=2,
    sizes={"train": 1500, "validation": 150, "test": 200},
    columns={"prompt": "prompt", "completion": "completion"},
    build=_build,
    score=_score,
    answer_tokens=6,
)

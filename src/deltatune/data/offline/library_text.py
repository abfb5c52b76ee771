"""The text that `nano` was pre-trained on, and the part of it that was held out from it.

The test split is what `nano` must not forget while it learns something else.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import datasets

from deltatune.data.offline.distinct_examples import DRAWING_ORDER
from deltatune.data.offline.offline_task import Level, OfflineTask
from deltatune.data.offline.standard_library import (
    check_enough,
    is_held_out,
    is_test,
    read_source,
    source_paths,
)
from deltatune.seeds import generator_for, shuffled

__all__ = ["TASK", "LibraryParts", "library_parts"]

TABLES = ("encodings/",)  # one mapping per alphabet, in which nothing can be learned but the table
SHORTEST_LINE = 20  # characters without white space around; shorter lines are in every file
MOST_SEEN = 0.5  # a file with more than this share of its long lines in earlier files is a copy
PIECE = 1200  # characters, about 350 tokens of `nano`, which reads 512
TOKENS = 4096  # of `nano`


@dataclass(frozen=True, kw_only=True)
class LibraryParts:
    """Files by their part.

    Args:
        train: path -> text.
        held_out: path -> text; chosen by a hash of the path, never trained on.
        dropped: paths of copies, and of tables of characters.
    """

    train: dict[str, str]
    held_out: dict[str, str]
    dropped: tuple[str, ...]


@functools.cache  # reading and parsing take seconds
def library_parts() -> LibraryParts:
    """Read the standard library of the running Python, without tests and what occurs twice.

    Held-out files are looked at first: a training file that mostly repeats one of them is dropped,
    so that nothing held out was seen.

    Raises:
        InputError: this Python has no sources of its standard library.
    """
    # Tests repeat themselves so much that a compressor does as well on them as a small model does.
    paths = [path for path in source_paths() if not is_test(path)]
    texts = ((path, read_source(path)) for path in paths)
    files = [(path, text) for path, text in texts if text is not None]
    ordered = sorted(files, key=lambda file: not is_held_out(file[0]))  # stable: by path within
    seen: set[str] = set()
    parts: tuple[dict[str, str], dict[str, str]] = ({}, {})
    dropped = []
    for path, text in ordered:
        lines = {line for line in map(str.strip, text.splitlines()) if len(line) >= SHORTEST_LINE}
        is_copy = len(lines & seen) > MOST_SEEN * len(lines)
        if not lines or is_copy or path.startswith(TABLES):
            dropped.append(path)
            continue
        seen |= lines
        parts[is_held_out(path)][path] = text
    return LibraryParts(train=parts[0], held_out=parts[1], dropped=tuple(dropped))


def _build(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    """Draw pieces: training from what the base has read, the others from different held-out files.

    Every second held-out file, by path, is for the test; the others are for validation.
    """
    parts = library_parts()
    held_out = list(parts.held_out.items())
    texts = {
        "train": list(parts.train.items()),
        "validation": held_out[1::2],
        "test": held_out[::2],
    }
    splits, taken = {}, set()
    for split in DRAWING_ORDER:
        pieces = [piece for path, text in texts[split] for piece in _pieces(path, text)]
        fresh = [piece for piece in pieces if piece["text"] not in taken]
        check_enough(split, sizes[split], len(fresh), "pieces")
        generator = generator_for(seed, f"library_text {split}")
        rows = shuffled(fresh, generator)[: sizes[split]]
        taken |= {row["text"] for row in rows}
        splits[split] = datasets.Dataset.from_list(rows)
    return datasets.DatasetDict({split: splits[split] for split in sizes})


def _pieces(path: str, text: str) -> Iterator[dict[str, str]]:
    """Cut a file at line ends into pieces of at most `PIECE` characters, longer lines whole."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > PIECE:
            yield {"text": piece, "file": path}
            piece = ""
        piece += line
    if piece.strip():
        yield {"text": piece, "file": path}


TASK = OfflineTask(
    name="library-text",
    title="Python's standard library as text; its test split is held out from nano",
    kind="text",
    base="deltatune/nano",
    metric="loss",
    levels=(Level(what="all files but tests", chance=math.log(TOKENS), ceiling=0.0),),
    difficulty=1,
    sizes={"train": 1000, "validation": 60, "test": 100},
    columns={"text": "text"},
    build=_build,
    is_pretraining=True,
)

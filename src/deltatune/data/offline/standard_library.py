"""The sources of Python's own standard library, read and never executed."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import tokenize
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

from deltatune.errors import InputError

__all__ = ["is_held_out", "source_files"]

# Not the library: what a user installed, what Python compiled, and what its build wrote down about
# one machine (`config-3.11-x86_64-linux-gnu/`, `_sysconfigdata_*.py`).
FOREIGN_FOLDERS = frozenset({"__pycache__", "dist-packages", "site-packages"})
BUILD_FOLDER = "config-"
BUILD_FILE = "_sysconfigdata"
HELD_OUT_ONE_IN = 20


def source_files(*, without: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return the `*.py` files of the running Python's standard library that can be parsed.

    A file is decoded as it declares (PEP 263); one that is unreadable, of unknown encoding or no
    valid Python is left out. Every line ends in a line feed.

    Args:
        without: names of folders to pass over, such as `test`; none by default. The whole library
            takes about 6 s of parsing, and half of it are tests.

    Returns:
        The POSIX path below the library's folder and the text of each file, in order of path.

    Raises:
        InputError: this Python was installed without sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = list(_files(folder, without))
    if not files:
        raise InputError(
            f"this Python has no sources of its standard library (looked in {folder}): install "
            "them, or choose a task without them: boxes, acceptability, aspect-sentiment"
        )
    return files


def is_held_out(relative_path: str) -> bool:
    """Tell whether a file of the library is kept from every base's pre-training (one in 20).

    The choice is a hash of the path alone, so that it is the same for the script that trains a
    base and for whoever tests it later, on any machine and Python.

    Args:
        relative_path: POSIX path below the library's folder, as `source_files` gives it.

    >>> is_held_out("json/encoder.py"), is_held_out("operator.py")
    (False, True)
    """
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def _belongs(path: Path, without: Collection[str]) -> bool:
    folders = path.parts[:-1]
    is_foreign = not (FOREIGN_FOLDERS | set(without)).isdisjoint(folders)
    is_built = path.name.startswith(BUILD_FILE) or any(
        name.startswith(BUILD_FOLDER) for name in folders
    )
    return not is_foreign and not is_built


def _files(folder: Path, without: Collection[str]) -> Iterator[tuple[str, str]]:
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    for relative in sorted(path.as_posix() for path in paths if _belongs(path, without)):
        try:
            with tokenize.open(folder / relative) as file:
                text = file.read()
            _check_syntax(text)
        except (OSError, SyntaxError, ValueError):  # ValueError: wrong bytes, or null characters
            continue
        yield relative, text


def _check_syntax(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources are not the user's concern
        ast.parse(text)

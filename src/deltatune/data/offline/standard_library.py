"""The sources of Python's own standard library, read and never executed."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import tokenize
import warnings
from pathlib import Path

from deltatune.errors import InputError

__all__ = [
    "FOREIGN_FOLDERS",
    "TEST_FOLDERS",
    "check_enough",
    "is_held_out",
    "is_test",
    "library_folder",
    "parsed",
    "read_source",
    "read_text",
    "source_paths",
]

# Not the library: what a user installed, what Python compiled, and what its build wrote down about
# one machine (`config-3.11-x86_64-linux-gnu/`, `_sysconfigdata_*.py`).
FOREIGN_FOLDERS = frozenset({"__pycache__", "dist-packages", "site-packages"})
BUILD_FOLDER = "config-"
BUILD_FILE = "_sysconfigdata"
TEST_FOLDERS = frozenset({"idle_test", "test", "tests"})
HELD_OUT_ONE_IN = 20


def source_paths() -> list[str]:
    """Return the `*.py` files of the running Python's standard library, tests included.

    Returns:
        POSIX paths below the library's folder, in order.

    Raises:
        InputError: this Python was installed without sources.
    """
    folder = library_folder()
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(path.as_posix() for path in paths if _belongs(path))


def library_folder() -> Path:
    """Return where the running Python keeps the sources of its standard library.

    Raises:
        InputError: this Python was installed without sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    if not any(_belongs(path.relative_to(folder)) for path in folder.rglob("*.py")):
        raise InputError(
            f"this Python has no sources of its standard library (looked in {folder}): install "
            "them, or choose a task without them: boxes, acceptability, aspect-sentiment"
        )
    return folder


def read_source(relative_path: str) -> str | None:
    """Return the text of one file; None where it is unreadable or no valid Python.

    Args:
        relative_path: as `source_paths` gives it.
    """
    text = read_text(relative_path)
    return text if text is not None and parsed(text) is not None else None


def read_text(relative_path: str) -> str | None:
    """Return the text of one file, decoded as it declares (PEP 263), lines ending in a line feed.

    Args:
        relative_path: as `source_paths` gives it.

    Returns:
        The text, Python or not; None where it is unreadable or in no known encoding.
    """
    try:
        with tokenize.open(Path(sysconfig.get_paths()["stdlib"]) / relative_path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):  # SyntaxError: an unknown encoding
        return None


def parsed(source: str | bytes) -> ast.Module | None:
    """Return the syntax tree of a source; None where it is no valid Python.

    Args:
        source: a text, or the bytes of a file, which are decoded as they declare (PEP 263).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes are not the user's concern
            return ast.parse(source)
    except (SyntaxError, ValueError):  # or an unknown encoding; ValueError: null characters
        return None


def is_held_out(relative_path: str) -> bool:
    """Tell whether a file of the library is kept from every base's pre-training (one in 20).

    The choice is a hash of the path alone, so that it is the same for the script that trains a
    base and for whoever tests it later, on any machine and Python.

    Args:
        relative_path: POSIX path below the library's folder, as `source_paths` gives it.

    >>> is_held_out("json/encoder.py"), is_held_out("operator.py")
    (False, True)
    """
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def is_test(relative_path: str) -> bool:
    """Tell whether a file belongs to the tests of the library, by the folders it lies in.

    Args:
        relative_path: as `source_paths` gives it.

    >>> is_test("json/tests/test_dump.py"), is_test("unittest/case.py")
    (True, False)
    """
    return not TEST_FOLDERS.isdisjoint(relative_path.split("/")[:-1])


def check_enough(split: str, size: int, found: int, what: str) -> None:
    """Refuse a split that is larger than what the library gives for it.

    Args:
        split: its name.
        size: number of examples asked for.
        found: number of examples that there are.
        what: they are, in the plural, as the message shall name them behind the number.

    Raises:
        InputError: `found` is below `size`.
    """
    if found < size:
        raise InputError(
            f"{split}={size} is not allowed: the standard library of this Python gives {found} "
            f"such {what}; give at most that many"
        )


def _belongs(relative: Path) -> bool:
    folders = relative.parts[:-1]
    is_foreign = not FOREIGN_FOLDERS.isdisjoint(folders)
    is_built = relative.name.startswith(BUILD_FILE) or any(
        name.startswith(BUILD_FOLDER) for name in folders
    )
    return not is_foreign and not is_built

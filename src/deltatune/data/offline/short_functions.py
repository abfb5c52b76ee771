"""The short functions of one file of the standard library, as their authors laid them out."""

from __future__ import annotations

import ast
import functools
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from deltatune.data.offline.standard_library import is_test, parsed, read_text

__all__ = ["Function", "short_functions"]

MOST_LINES = 8
LONGEST_LINE = 72  # characters, without the indentation that all lines share
LONGEST_TEXT = 300  # characters: about 110 tokens
LARGEST_FILE = 50_000  # characters: one of the few larger ones takes as long as twenty others
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A short function.

    Args:
        path: POSIX path of its file below the library's folder.
        name: its own name, without the class.
        text: its lines from `def` on, without decorators and common indentation; of a docstring
            only the first line.
        first_line: index of the first line after signature and docstring.
        body: what it does, as text that does not depend on layout, comments and docstring.
        doctest: its whole docstring if that holds examples which can be run with the module's
            names alone; otherwise empty.
    """

    path: str
    name: str
    text: str
    first_line: int
    body: str
    doctest: str


def short_functions(relative_path: str) -> tuple[Function, ...]:
    """Return the functions and methods of a file that fit in `MOST_LINES` lines, in its order.

    A file that is no valid Python or larger than `LARGEST_FILE` has none. Left out are functions
    with other than ASCII letters, with tabs or with text over several lines, and those that do
    nothing but `pass`.

    Args:
        relative_path: as `standard_library.source_paths` gives it.
    """
    return _short_functions(sysconfig.get_paths()["stdlib"], relative_path)


@functools.lru_cache(maxsize=4096)  # reading and parsing is what takes the time
def _short_functions(folder: str, relative_path: str) -> tuple[Function, ...]:
    del folder  # part of the key only: another Python has other sources
    source = read_text(relative_path)
    tree = None if source is None or len(source) > LARGEST_FILE else parsed(source)
    if source is None or tree is None:
        return ()
    lines = source.split("\n")
    found = (
        _read(definition, lines, relative_path, is_method)
        for definition, is_method in _definitions(tree.body, is_method=False)
    )
    return tuple(function for function in found if function is not None)


def _definitions(body: list[ast.stmt], *, is_method: bool) -> Iterator[tuple[Definition, bool]]:
    for statement in body:
        if isinstance(statement, Definition):
            yield statement, is_method
        elif isinstance(statement, ast.ClassDef):
            yield from _definitions(statement.body, is_method=True)


def _read(definition: Definition, lines: list[str], path: str, is_method: bool) -> Function | None:
    shown = _with_short_docstring(definition, lines)
    if shown is None:
        return None
    text = textwrap.dedent("\n".join(shown))
    rows = text.split("\n")
    fits = len(rows) <= MOST_LINES and len(text) <= LONGEST_TEXT and text.isascii()
    if not fits or "\t" in text or max(map(len, rows)) > LONGEST_LINE:
        return None
    docstring = ast.get_docstring(definition)
    statements = definition.body[docstring is not None :]
    quotes = text.count('"""') - 2 * (docstring is not None) + text.count("'''")
    if quotes or not statements or statements[0].lineno == definition.lineno:
        return None
    body = "\n".join(ast.unparse(statement) for statement in statements)
    if body in ("pass", "...") or not _means(text, body, docstring is not None):
        return None
    return Function(
        path=path,
        name=definition.name,
        text=text,
        first_line=len(rows) - (definition.body[-1].end_lineno or 0) + statements[0].lineno - 1,
        body=body,
        doctest=_doctest(docstring, path, is_method),
    )


def _with_short_docstring(definition: Definition, lines: list[str]) -> list[str] | None:
    """Return the lines of a function; None where its docstring cannot be cut to one line."""
    first, last = definition.lineno - 1, definition.end_lineno or 0
    docstring = ast.get_docstring(definition)
    if docstring is None:
        return lines[first:last]
    statement = definition.body[0]
    start, end = statement.lineno - 1, statement.end_lineno or 0
    summary = docstring.strip().split("\n")[0].strip()
    if start == first or not summary or '"' in summary or "\\" in summary:
        return None
    indentation = lines[start][: statement.col_offset]
    return [*lines[first:start], f'{indentation}"""{summary}"""', *lines[end:last]]


def _means(text: str, body: str, has_docstring: bool) -> bool:
    """Tell whether a text is one function of this body: cutting and dedenting changed nothing."""
    tree = parsed(text)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], Definition):
        return False
    statements = tree.body[0].body[has_docstring:]
    return "\n".join(ast.unparse(statement) for statement in statements) == body


def _doctest(docstring: str | None, path: str, is_method: bool) -> str:
    can_be_run = not is_method and not is_test(path)
    return docstring if docstring and ">>> " in docstring and can_be_run else ""

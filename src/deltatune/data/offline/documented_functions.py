"""The documented functions of Python's own standard library, read and never executed."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltatune.data.offline.standard_library import FOREIGN_FOLDERS, TEST_FOLDERS, parsed

__all__ = ["Function", "documented_functions", "package_of", "words"]

SKIPPED_FOLDERS = FOREIGN_FOLDERS | TEST_FOLDERS | {"idlelib", "lib2to3", "turtledemo"}
LONGEST_FUNCTION = 200  # characters; with the docstring about 64 word pieces
LONGEST_DOCSTRING = 240  # characters
FEWEST_WORDS = 3  # a docstring below this ("See above.") fits too many functions
STOP_WORDS = frozenset(
    "a an and are as at be by for from if in is it its of on or that the this to with".split()
)


@dataclass(frozen=True)
class Function:
    """A documented function.

    Args:
        module: dotted path of its file.
        name: its own name, without the class.
        source: its text without docstrings and comments, from signature to at most
            `LONGEST_FUNCTION` characters.
        docstring: its first paragraph on one line, at most `LONGEST_DOCSTRING` characters.
    """

    module: str
    name: str
    source: str
    docstring: str

    @functools.cached_property
    def docstring_words(self) -> frozenset[str]:
        """The words of the docstring."""
        return words(self.docstring)

    @functools.cached_property
    def name_words(self) -> frozenset[str]:
        """The words that the name is made of."""
        return words(self.name)


def words(text: str) -> frozenset[str]:
    """Return the lower-case words of a text, identifiers taken apart, without stop words.

    >>> sorted(words("Return the lastRow of row_count"))
    ['count', 'last', 'return', 'row']
    """
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    return frozenset(part.lower() for part in parts) - STOP_WORDS


def package_of(module: str) -> str:
    """Return the package of a module; a twin in pure Python (`_pydecimal`) is of its original's.

    Args:
        module: dotted path, as in `Function`.

    >>> package_of("json.decoder"), package_of("_pydecimal"), package_of("_strptime")
    ('json', 'decimal', 'strptime')
    """
    return re.sub(r"^_(py)?", "", module.partition(".")[0])


@functools.lru_cache(maxsize=1)  # parsing the library takes seconds
def documented_functions(folder: Path) -> tuple[Function, ...]:
    """Return the functions and methods below a folder that say what they do, in order of path.

    Files that do not parse are passed over, and so are tests and installed packages. Text and body
    each occur once: of equal ones the first is kept. The last folder's are kept, so a folder that
    changes is not read again.

    Args:
        folder: the standard library's, or another with Python files.
    """
    return tuple(_distinct_functions(folder))


def _distinct_functions(folder: Path) -> Iterator[Function]:
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1]):
            for function in _functions_of(path, ".".join(relative.with_suffix("").parts)):
                body = hashlib.sha256(function.source.partition("\n")[2].encode()).hexdigest()
                texts = {" ".join(sorted(function.docstring_words)), body}
                if seen.isdisjoint(texts):
                    yield function
                seen |= texts


def _functions_of(path: Path, module: str) -> Iterator[Function]:
    tree = parsed(path.read_bytes())
    if tree is None:
        return
    for definition in _definitions(tree.body):
        text = ast.get_docstring(definition)
        if text and len(definition.body) > 1:
            yield from _readable(definition, text, module)


def _definitions(
    body: Iterable[ast.stmt],
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield functions and methods; what is defined inside a function belongs to its body."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement
        elif isinstance(statement, ast.ClassDef):
            yield from _definitions(statement.body)


def _readable(
    definition: ast.FunctionDef | ast.AsyncFunctionDef, text: str, module: str
) -> Iterator[Function]:
    paragraph = " ".join(text.split("\n\n")[0].split())
    if ">>>" in paragraph or len(words(paragraph)) < FEWEST_WORDS:
        return
    for node in ast.walk(definition):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            _drop_docstring(node)
    yield Function(
        module=module,
        name=definition.name,
        source=ast.unparse(definition)[:LONGEST_FUNCTION].rstrip(),  # has no comments either
        docstring=paragraph[:LONGEST_DOCSTRING].rstrip(),
    )


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]

"""A correct function in, the same function with one fault of a named kind out."""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import torch

from deltatune.data.offline.short_functions import Function
from deltatune.data.offline.standard_library import parsed
from deltatune.seeds import shuffled

__all__ = ["MEANING", "SPELLING", "Fault", "Kinds", "faults_of"]

SHORTEST_WORD = 4  # letters: of a shorter word too little is left to tell it by
COMPARISONS = MappingProxyType({"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "=="})
OPERATORS = MappingProxyType(
    {"+": "-", "-": "+", "*": "/", "/": "*", "//": "%", "%": "//", "+=": "-=", "-=": "+="}
)
LARGEST_CONSTANT = 99
CLOSING = MappingProxyType({")": "(", "]": "[", "}": "{"})


@dataclass(frozen=True)
class Fault:
    """One changed line of a function.

    Args:
        kind: a name of `SPELLING` or `MEANING`.
        line: index of the line in the function's text.
        text: the faulty line, with its indentation.
    """

    kind: str
    line: int
    text: str


@dataclass(frozen=True)
class Source:
    """A function's text, and what is needed to change it in one place."""

    function: Function

    @cached_property
    def lines(self) -> list[str]:
        return self.function.text.split("\n")

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.function.text).readline))

    @cached_property
    def tree(self) -> ast.FunctionDef | ast.AsyncFunctionDef:
        definition = ast.parse(self.function.text).body[0]
        assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
        return definition

    @cached_property
    def names(self) -> list[str]:
        return [token.string for token in self.tokens if token.type == tokenize.NAME]

    def body_tokens(self, kind: int) -> Iterator[tuple[tokenize.TokenInfo, tokenize.TokenInfo]]:
        """Yield each token of this kind after signature and docstring, and the one before it."""
        for previous, token in zip(self.tokens, self.tokens[1:], strict=False):
            if token.type == kind and token.start[0] > self.function.first_line:
                yield previous, token

    def body_nodes(self) -> Iterator[ast.AST]:
        for statement in self.tree.body:
            if statement.lineno > self.function.first_line:
                yield from ast.walk(statement)

    def edited(self, line: int, start: int, end: int, new: str) -> tuple[int, str]:
        """Return a line, counted from 0, with the characters from start to end replaced."""
        old = self.lines[line]
        return line, f"{old[:start]}{new}{old[end:]}"

    def replaced(self, token: tokenize.TokenInfo, new: str) -> tuple[int, str]:
        """Return the line of a token with other text in its place."""
        return self.edited(token.start[0] - 1, token.start[1], token.end[1], new)


Edits = Iterator[tuple[int, str]]  # index of a line, its faulty text
Kinds = Mapping[str, Callable[[Source], Edits]]


def _misspelt_name(source: Source) -> Edits:
    for _, token in source.body_tokens(tokenize.NAME):
        if not keyword.iskeyword(token.string) and source.names.count(token.string) > 1:
            yield from _exchanged_letters(source, token)


def _misspelt_keyword(source: Source) -> Edits:
    for _, token in source.body_tokens(tokenize.NAME):
        if keyword.iskeyword(token.string):
            yield from _exchanged_letters(source, token)


def _exchanged_letters(source: Source, token: tokenize.TokenInfo) -> Edits:
    word = token.string
    for i in range(len(word) - 1) if len(word) >= SHORTEST_WORD else ():
        wrong = f"{word[:i]}{word[i + 1]}{word[i]}{word[i + 2 :]}"
        if wrong.isidentifier() and wrong not in source.names and not keyword.iskeyword(wrong):
            yield source.replaced(token, wrong)


def _missing_colon(source: Source) -> Edits:
    for line, text in enumerate(source.lines):
        if text.endswith(":"):
            yield source.edited(line, len(text) - 1, len(text), "")


def _missing_bracket(source: Source) -> Edits:
    """Only at the end of a line whose brackets are in balance: it goes back to one place."""
    for line, text in enumerate(source.lines):
        end = len(text.removesuffix(":"))
        if text[end - 1 : end] in CLOSING and _is_balanced(text):
            yield source.edited(line, end - 1, end, "")


def _is_balanced(text: str) -> bool:
    return all(text.count(closing) == text.count(opening) for closing, opening in CLOSING.items())


def _single_equals_sign(source: Source) -> Edits:
    for _, token in source.body_tokens(tokenize.OP):
        if token.string == "==":
            yield source.replaced(token, "=")


def _repeated_word(source: Source) -> Edits:
    for _, token in source.body_tokens(tokenize.NAME):
        yield source.replaced(token, f"{token.string} {token.string}")


def _swapped_comparison(source: Source) -> Edits:
    for _, token in source.body_tokens(tokenize.OP):
        if token.string in COMPARISONS:
            yield source.replaced(token, COMPARISONS[token.string])


def _wrong_operator(source: Source) -> Edits:
    for previous, token in source.body_tokens(tokenize.OP):
        is_value = previous.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING)
        is_binary = is_value and not keyword.iskeyword(previous.string)
        if token.string in OPERATORS and (is_binary or previous.string in (")", "]")):
            yield source.replaced(token, OPERATORS[token.string])


def _and_for_or(source: Source) -> Edits:
    for _, token in source.body_tokens(tokenize.NAME):
        if token.string in ("and", "or"):
            yield source.replaced(token, "or" if token.string == "and" else "and")


def _off_by_one(source: Source) -> Edits:
    for _, token in source.body_tokens(tokenize.NUMBER):
        if token.string.isdecimal() and int(token.string) <= LARGEST_CONSTANT:
            for number in (int(token.string) + 1, int(token.string) - 1):
                if number >= 0:
                    yield source.replaced(token, str(number))


def _negated_condition(source: Source) -> Edits:
    for line, text in enumerate(source.lines):
        for word in ("if", "elif", "while"):
            opening = f"{text[: len(text) - len(text.lstrip())]}{word} "
            if text.startswith(f"{opening}not "):
                yield source.edited(line, len(opening), len(opening) + len("not "), "")
            elif text.startswith(opening) and not {" and ", " or "} & set(_spaced_words(text)):
                yield source.edited(line, len(opening), len(opening), "not ")


def _spaced_words(text: str) -> list[str]:
    return [f" {word} " for word in text.split()]


def _wrong_name(source: Source) -> Edits:
    arguments = source.tree.args
    listed = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    parameters = [argument.arg for argument in listed if argument.arg not in ("self", "cls")]
    for node in source.body_nodes():
        if isinstance(node, ast.Name) and node.id in parameters:
            for other in parameters:
                if other != node.id:
                    end = node.col_offset + len(node.id)
                    yield source.edited(node.lineno - 1, node.col_offset, end, other)


def _missing_return(source: Source) -> Edits:
    for node in source.body_nodes():
        if isinstance(node, ast.Return) and node.value is not None:
            start = node.value.col_offset
            if node.value.lineno == node.lineno == node.end_lineno:
                yield source.edited(node.lineno - 1, node.col_offset, start, "")


def _swapped_arguments(source: Source) -> Edits:
    for node in source.body_nodes():
        if isinstance(node, ast.Call) and len(node.args) == 2 and not node.keywords:
            one, two = node.args
            is_plain = all(
                isinstance(a, ast.Name | ast.Constant | ast.Attribute) for a in (one, two)
            )
            if is_plain and one.lineno == two.end_lineno:
                text = source.lines[one.lineno - 1]
                first = text[one.col_offset : one.end_col_offset]
                second = text[two.col_offset : two.end_col_offset]
                yield source.edited(
                    one.lineno - 1, one.col_offset, two.end_col_offset or 0, f"{second}, {first}"
                )


# These break the text: who knows the language, and nothing of the function, sees and repairs them.
SPELLING: Kinds = MappingProxyType(
    {
        "misspelt name": _misspelt_name,
        "misspelt keyword": _misspelt_keyword,
        "missing colon": _missing_colon,
        "missing bracket": _missing_bracket,
        "single equals sign": _single_equals_sign,
        "repeated word": _repeated_word,
    }
)
# These leave valid Python that does something else.
MEANING: Kinds = MappingProxyType(
    {
        "swapped comparison": _swapped_comparison,
        "wrong operator": _wrong_operator,
        "and for or": _and_for_or,
        "off by one": _off_by_one,
        "negated condition": _negated_condition,
        "wrong name": _wrong_name,
        "missing return": _missing_return,
        "swapped arguments": _swapped_arguments,
    }
)
MAY_PARSE = frozenset({"misspelt name", "misspelt keyword"})


def faults_of(
    function: Function, groups: Sequence[Kinds], generator: torch.Generator
) -> Iterator[Fault]:
    """Yield one fault of each kind that the function allows.

    Groups, the kinds of a group and the places are in random order: half of the functions that
    allow both begin with a fault of spelling and half with one of meaning, though there are far
    more places for the former.

    Args:
        function: what to break.
        groups: some of `SPELLING` and `MEANING`.
        generator: of the choices.
    """
    source = Source(function)
    kinds = [
        kind
        for group in shuffled(groups, generator)
        for kind in shuffled(list(group.items()), generator)
    ]
    for kind, edits_of in kinds:
        for line, text in shuffled(list(edits_of(source)), generator):
            fault = Fault(kind, line, text)
            if _is_fault(source, fault):
                yield fault
                break


def _is_fault(source: Source, fault: Fault) -> bool:
    """Tell whether a change shows as its kind says: broken Python, or valid and different."""
    faulty = list(source.lines)
    faulty[fault.line] = fault.text
    tree = parsed("\n".join(faulty))
    if fault.kind in MEANING:
        return tree is not None and ast.dump(tree) != ast.dump(ast.parse(source.function.text))
    return tree is None or fault.kind in MAY_PARSE

"""Every part declares itself once; tables, shared tests and files are made from the declarations.

A part is a frozen dataclass of options, declared under a name in the room (sub-package) where it
lives.
A room is filled by importing its modules, so adding a part is adding a file.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic

from deltatune.errors import InputError, unknown_name
from deltatune.field_errors import explained

__all__ = [
    "ROOMS",
    "Declaration",
    "Source",
    "declare",
    "from_plain",
    "json_schema",
    "known",
    "to_plain",
]

ROOMS = ("deltas", "selections", "updates", "objectives", "blocks", "recipes", "reports")
# Their parts are functions, whose keyword arguments are the options.
ROOMS_OF_FUNCTIONS = ("recipes", "reports")
Declared = TypeVar("Declared")
_declared: dict[str, dict[str, Declaration]] = {room: {} for room in ROOMS}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a part comes from.

    Args:
        authors: for example `"Hu et al."`.
        year: of the version used.
        title: of the paper.
        arxiv: identifier, or an empty string for work that has none.
        where: equation, table or section.
    """

    authors: str
    year: int
    title: str
    arxiv: str = ""
    where: str = ""

    def __str__(self) -> str:
        identifier = f", arXiv {self.arxiv}" if self.arxiv else ""
        where = f", {self.where}" if self.where else ""
        return f"{self.authors} {self.year}, {self.title}{identifier}{where}"


@dataclass(frozen=True)
class Declaration:
    """What a part says of itself: its room, name, options, implementation and source."""

    room: str
    name: str
    options: type[Any]
    implementation: Any
    source: Source | None

    @property
    def summary(self) -> str:
        """The first line of the part's docstring."""
        return (inspect.getdoc(self.implementation) or "").strip().split("\n", 1)[0]

    @property
    def defaults(self) -> dict[str, Any]:
        """Option name -> default; `dataclasses.MISSING` where a value must be given."""
        return {field.name: _default(field) for field in dataclasses.fields(self.options)}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def declare(
    room: str, name: str, *, options: type[Any] | None = None, source: Source | None = None
) -> Callable[[Declared], Declared]:
    """Declare the decorated class or function as the part `name` of `room`.

    Args:
        room: one of `ROOMS`.
        name: what a recipe file writes after `kind:`.
        options: frozen dataclass of the part's options; the decorated class itself if not given.
        source: the publication it follows.
    """

    def decorate(implementation: Declared) -> Declared:
        chosen = options if options is not None else implementation
        if room not in ROOMS_OF_FUNCTIONS and not dataclasses.is_dataclass(chosen):
            raise TypeError(f"{implementation!r} declares no dataclass of options")
        if name in _declared[room]:
            raise ValueError(f"{room} already has a part named {name!r}")
        _declared[room][name] = Declaration(room, name, chosen, implementation, source)  # type: ignore[arg-type]
        return implementation

    return decorate


@functools.cache
def _import_room(room: str) -> None:
    package = importlib.import_module(f"deltatune.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"deltatune.{room}.{module.name}")


def known(room: str) -> Mapping[str, Declaration]:
    """Return every part of a room by name, in alphabetical order."""
    if room not in _declared:
        raise unknown_name("room", room, ROOMS)
    _import_room(room)
    return dict(sorted(_declared[room].items()))


def declaration_of(options: object, room: str) -> Declaration:
    """Find the declaration of an options value."""
    for declaration in known(room).values():
        if type(options) is declaration.options:
            return declaration
    names = ", ".join(known(room))
    raise InputError(
        f"{type(options).__name__} is not a part of {room}: give the options of one of {names}"
    )


def to_plain(options: object, room: str) -> dict[str, Any]:
    """Turn a part's options into plain values: `{"kind": name, option: value, ...}`."""
    declaration = declaration_of(options, room)

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if any(type(value) is part.options for part in known(room).values()):
                return to_plain(value, room)
            return {name: plain(getattr(value, name)) for name in _names(value)}
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (tuple, list, set, frozenset)):
            items = sorted(value) if isinstance(value, (set, frozenset)) else value
            return [plain(item) for item in items]
        return value

    fields = {name: plain(getattr(options, name)) for name in _names(declaration.options)}
    return {"kind": declaration.name, **fields}


def _names(options: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(options)]


def from_plain(plain: Any, room: str, *, where: str = "") -> Any:
    """Build a part's options from plain values; unknown names and keys are errors, nearest first.

    Args:
        plain: `{"kind": name, option: value, ...}`, or just the name for all defaults.
        room: where the part lives; nested parts (of a sum or a chain) live in the same room.
        where: the field's path, for messages.
    """
    where = where or room
    if isinstance(plain, str):
        plain = {"kind": plain}
    if not isinstance(plain, Mapping):
        raise InputError(f"{where} is {plain!r}: give a mapping with the key 'kind'")
    if "kind" not in plain:
        raise InputError(f"{where} has no key 'kind': give one of {', '.join(known(room))}")
    parts = known(room)
    if plain["kind"] not in parts:
        raise unknown_name(f"{where}.kind", plain["kind"], parts)
    options = parts[plain["kind"]].options
    fields = {
        key: _nested(value, room, f"{where}.{key}") for key, value in plain.items() if key != "kind"
    }
    return validated(options, fields, where)


def _nested(value: Any, room: str, where: str) -> Any:
    if isinstance(value, Mapping) and "kind" in value:
        return from_plain(value, room, where=where)
    if isinstance(value, list):
        return [_nested(item, room, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def validated(options: type[Any], fields: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from plain fields; errors name the field's path, the value and the fix."""
    names = _names(options)
    for key in fields:
        if key not in names:
            raise unknown_name(f"{where}: key", key, names)
    try:
        return _adapter(options).validate_python(dict(fields))
    except pydantic.ValidationError as error:
        raise explained(error, fields, where) from error


def _adapter(options: type[Any]) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(options)


def json_schema(room: str) -> dict[str, Any]:
    """Return the JSON Schema of a room: one of its parts."""
    alternatives = []
    for declaration in known(room).values():
        schema = _adapter(declaration.options).json_schema()
        schema["properties"] = {"kind": {"const": declaration.name}, **schema.get("properties", {})}
        schema["required"] = ["kind", *schema.get("required", [])]
        schema["additionalProperties"] = False
        schema["description"] = declaration.summary
        alternatives.append(schema)
    return {"oneOf": alternatives}

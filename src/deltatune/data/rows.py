"""Columns as found in, columns that can be trained on out; a faulty row is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from deltatune.data.images import checked_images
from deltatune.errors import InputError

__all__ = ["CHAT_ROLES", "conversation", "prepared_column"]

CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")
# other spellings of a turn: (name of the role field, name of the content field, their roles)
TURN_SPELLINGS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("role", "content", {}),
    (
        "from",
        "value",
        {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"},
    ),
)


def prepared_column(rows: datasets.Dataset, role: str, column: str, split: str) -> pa.ChunkedArray:
    """Return one column of a split, checked and in the one form that the rest of the code knows.

    Texts become strings (numbers are written out), turns of a chat become objects with `role` and
    `content`; labels and images stay as they are, without nulls.

    Raises:
        InputError: a row lacks the field, is empty, or holds another kind of value.
    """
    if column not in rows.column_names:
        raise InputError(
            f"{split} has no column {column!r}, which train has as the {role}: "
            f"{split} has {', '.join(rows.column_names)}"
        )
    values = rows.with_format("arrow")[:].column(column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if role == "context":
        return _texts(pc.fill_null(values, ""), role, column, split)
    _refuse_rows(pc.is_null(values), f"no value for {column!r}, the {role}", split)
    if role == "label":
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            _refuse_rows(_is_blank(values), f"an empty {column!r}, the label", split)
        return values
    if role == "image":
        return checked_images(values, column, split)
    if role == "messages":
        return _conversations(values, column, split)
    texts = _texts(values, role, column, split)
    _refuse_rows(_is_blank(texts), f"an empty {column!r}, the {role}", split)
    return texts


def _texts(values: pa.ChunkedArray, role: str, column: str, split: str) -> pa.ChunkedArray:
    kind = values.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text or is_number or pa.types.is_string_view(kind)):
        raise InputError(
            f"column {column!r} of {split} holds {kind}, but the {role} must be text: "
            "give another column"
        )
    return values.cast(pa.large_string())


def _is_blank(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(pc.utf8_trim_whitespace(values), "")


def _refuse_rows(is_faulty: pa.ChunkedArray, fault: str, split: str) -> None:
    count = pc.sum(is_faulty).as_py() or 0
    if not count:
        return
    first = pc.index(is_faulty, True).as_py() + 1
    others = f" ({count} such rows)" if count > 1 else ""
    raise InputError(f"row {first} of {split} has {fault}{others}: complete the row or take it out")


def _conversations(values: pa.ChunkedArray, column: str, split: str) -> pa.ChunkedArray:
    if not pa.types.is_nested(values.type):
        raise InputError(
            f"column {column!r} of {split} holds {values.type}, but messages must be a list of "
            'turns such as {"role": "user", "content": "..."}'
        )
    chunks = []
    number = 0
    for batch in values.chunks:
        turns = []
        for row in batch.to_pylist():
            number += 1
            turns.append(conversation(row, f"row {number} of {split}"))
        chunks.append(pa.array(turns))
    return pa.chunked_array(chunks) if len(chunks) == 1 else _one_type(chunks)


def _one_type(chunks: Sequence[pa.Array]) -> pa.ChunkedArray:
    tables = [pa.table({"messages": chunk}) for chunk in chunks]
    return pa.concat_tables(tables, promote_options="permissive").column("messages")


def conversation(turns: Any, where: str) -> list[dict[str, Any]]:
    """Return one conversation with `role` and `content` in every turn, empty fields left out.

    Raises:
        InputError: a turn has no known role or no text, or no assistant turn has any.
    """
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where} holds no messages: give at least one user and assistant turn")
    read = [_turn(turn, f"{where}, message {place}") for place, turn in enumerate(turns, start=1)]
    if not any(turn["role"] == "assistant" for turn in read):
        raise InputError(f"{where} has no assistant message, so nothing could be learned from it")
    return read


def _turn(turn: Mapping[str, Any], where: str) -> dict[str, Any]:
    spelling = next((known for known in TURN_SPELLINGS if turn.get(known[0]) is not None), None)
    if spelling is None:
        raise InputError(f'{where} has no role: write turns as {{"role": ..., "content": ...}}')
    role_field, content_field, spellings = spelling
    role = spellings.get(turn[role_field], turn[role_field])
    if role not in CHAT_ROLES:
        raise InputError(
            f"{where} has the role {turn[role_field]!r}: give one of {', '.join(CHAT_ROLES)}"
        )
    content = turn.get(content_field)
    if content is None and turn.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        kind = "no content" if content is None else f"{type(content).__name__} content"
        raise InputError(f"{where} ({role}) has {kind}: the content must be text")
    used = (role_field, content_field)
    rest = {name: value for name, value in turn.items() if value is not None and name not in used}
    return {"role": role, "content": content, **rest}

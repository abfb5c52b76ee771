"""One file in, one table out; every fault is named with its file and its place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from deltatune.errors import InputError, nearest_first

__all__ = ["READABLE_SUFFIXES", "check_readable", "existing", "read_file", "table_of"]

ROWS_AT_A_TIME = 4096  # Python rows are ten times as large as Arrow ones: few live at a time
SHOWN_CHARACTERS = 60
RUNS_CODE = {  # suffix -> what it is; reading one would run whatever it says
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".pt": "a pickle",
    ".pth": "a pickle",
    ".bin": "a pickle",
    ".joblib": "a pickle",
    ".npy": "possibly a pickle",
    ".py": "a loading script",
}


def existing(path: Path, what: str = "data") -> Path:
    """Return `path` if it exists, else raise with the nearest names that do.

    Raises:
        InputError: nothing lies at `path`.
    """
    if path.exists():
        return path
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    missing = path.relative_to(folder).parts[0]
    names = nearest_first(missing, (entry.name for entry in folder.iterdir()))[:5]
    there = f"in {folder} there are {', '.join(names)}" if names else f"{folder} is empty"
    raise InputError(f"{what} {path} does not exist: {there}")


def check_readable(path: Path) -> None:
    """Refuse a file that cannot be read without running code, or whose format is not known.

    Raises:
        InputError: the suffix is not one of `READABLE_SUFFIXES`.
    """
    suffix = path.suffix.lower()
    if suffix in RUNS_CODE:
        raise InputError(
            f"{path} is refused: {RUNS_CODE[suffix]} runs code when it is loaded; "
            f"save the rows as one of {', '.join(READABLE_SUFFIXES)}"
        )
    if suffix not in READERS:
        raise InputError(
            f"{path} has the suffix {suffix!r}, which cannot be read: "
            f"give one of {', '.join(READABLE_SUFFIXES)}"
        )


def read_file(path: Path) -> pa.Table:
    """Read one file into memory.

    JSONL is parsed line by line so that a fault has a line number. The cells of CSV and TSV stay
    text: a label is read as a number later, and a text such as `007` keeps its zeros. Documents of
    a text file are parted by blank lines; where it has none, each line is a document.

    Args:
        path: an existing file with one of `READABLE_SUFFIXES`.

    Raises:
        InputError: the file is empty, broken, not UTF-8 or of an unknown format.
    """
    check_readable(path)
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: give a file with at least one row")
    table = READERS[path.suffix.lower()](path)
    if table.num_rows == 0:
        raise InputError(f"{path} holds no rows: give a file with at least one row")
    return table


def table_of(rows: Sequence[Mapping[str, Any]], where: str, places: Sequence[str]) -> pa.Table:
    """Turn rows into a table; a field that a row lacks becomes null.

    Args:
        rows: one mapping per row.
        where: what holds the rows, for errors.
        places: the name of each row's place, such as `line 7`.

    Raises:
        InputError: the values of one column are of different kinds.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[str(name)] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise _mixed(str(name), values, where, places, error) from error
    return pa.table(columns)


def _mixed(
    name: str, values: Sequence[Any], where: str, places: Sequence[str], error: Exception
) -> InputError:
    first: tuple[str, str] | None = None
    for value, place in zip(values, places, strict=True):
        if value is None:
            continue
        kind = _kind(value)
        if first is None:
            first = (kind, place)
        elif kind != first[0]:
            return InputError(
                f"{where}: column {name!r} holds {first[0]} in {first[1]} and {kind} in {place}: "
                "give every row the same kind"
            )
    reason = " ".join(str(error).split())
    return InputError(f"{where}: column {name!r} cannot be made one table column: {reason}")


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "an object" if isinstance(value, Mapping) else "something else")


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line), decoded strictly."""
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                position, line = 3, line[3:]  # a mark that some editors write, not part of the data
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path} is not UTF-8: byte {position + error.start} in line {number} is "
                    f"0x{line[error.start]:02x}; save the file as UTF-8"
                ) from error
            position += len(line)


def _text(path: Path) -> str:
    return "".join(line for _, line in _lines(path))


def _read_json_lines(path: Path) -> pa.Table:
    tables: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        rows.append(_row(path, number, line.strip()))
        places.append(f"line {number}")
        if len(rows) == ROWS_AT_A_TIME:
            tables.append(table_of(rows, str(path), places))
            rows, places = [], []
    if rows:
        tables.append(table_of(rows, str(path), places))
    return _joined(path, tables)


def _joined(path: Path, tables: Sequence[pa.Table]) -> pa.Table:
    if not tables:
        return pa.table({})
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: a column changes its kind within the file: {reason}") from error


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {number} is not JSON ({error.msg} at character {error.colno}): "
            f"{_shortened(line)}"
        ) from error
    if not isinstance(row, dict):
        raise InputError(
            f"{path}, line {number} is not a JSON object such as "
            f'{{"text": "...", "label": 1}}: {_shortened(line)}'
        )
    return row


def _read_json(path: Path) -> pa.Table:
    text = _text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        first_line = text.lstrip().split("\n", 1)[0]
        if error.msg == "Extra data" and first_line.rstrip().endswith("}"):
            return _read_json_lines(path)  # many tools write JSON lines under this suffix
        line = text.split("\n")[error.lineno - 1]
        raise InputError(
            f"{path} is not JSON ({error.msg} in line {error.lineno}, character {error.colno}): "
            f"{_shortened(line)}"
        ) from error
    rows = _list_of_rows(content)
    if rows is None:
        raise InputError(
            f"{path} holds no list of rows: give a list of objects, or an object of which exactly "
            "one field is such a list"
        )
    places = [f"row {number}" for number in range(1, len(rows) + 1)]
    return table_of(rows, str(path), places)


def _list_of_rows(content: Any) -> Any:
    if isinstance(content, dict):
        lists = [value for value in content.values() if _is_list_of_rows(value)]
        return lists[0] if len(lists) == 1 else None
    return content if _is_list_of_rows(content) else None


def _is_list_of_rows(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(row, dict) for row in content)


def _read_separated(path: Path, delimiter: str) -> pa.Table:
    text = _text(path)
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    signs = ",;\t|".replace(delimiter, "") if len(header) == 1 else ""
    other = next((sign for sign in signs if sign in header[0]), None)
    if other is not None:
        raise InputError(
            f"{path} is separated by {other!r} and not by {delimiter!r}: its one column would be "
            f"{header[0]!r}; save it with {delimiter!r}"
        )
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise InputError(f"{path} has the column {doubled[0]!r} twice: give each column a name")
    try:
        return pyarrow.csv.read_csv(
            io.BytesIO(text.encode()),
            # only one thread counts the rows, so only then does a fault have a row number
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in header}
            ),
        )
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a table of {len(header)} columns: {reason}") from error


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pyarrow.parquet.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from error


def _read_text(path: Path) -> pa.Table:
    text = "\n".join(line.rstrip() for line in _text(path).splitlines())
    parts = text.split("\n\n") if "\n\n" in text.strip("\n") else text.split("\n")
    documents = [part.strip("\n") for part in parts if part.strip()]
    return pa.table({"text": pa.array(documents, type=pa.string())})


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".text": _read_text,
}
READABLE_SUFFIXES = tuple(READERS)

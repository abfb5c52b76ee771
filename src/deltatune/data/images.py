"""Stored images: how a column of them is known, checked, compared and opened one at a time."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import torch

from deltatune.errors import InputError
from deltatune.seeds import generator_for

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "check_pillow",
    "checked_images",
    "digests",
    "grey_image",
    "is_image_column",
    "opened",
    "random_image",
    "shown",
    "with_stored_images",
]

FIELDS = {"bytes", "path"}  # how `datasets` stores an image: its file, or where its file lies


def is_image_column(feature: object) -> bool:
    """Tell whether a column's type in `datasets` holds images."""
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, Mapping) and set(feature) == FIELDS
    )


def check_pillow() -> None:
    """Refuse images where the package that reads them is missing.

    Raises:
        InputError: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise InputError(
            "images are read by the package Pillow, which is not installed: run "
            "'pip install deltatune[images]'"
        )


def with_stored_images(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Turn the Pillow images of rows into what a table can hold; other rows stay as they are."""
    pillow: Any = sys.modules.get("PIL.Image")  # nobody has made an image before it is imported
    if pillow is None:
        return rows
    kind = pillow.Image
    return [
        {name: _stored(value) if isinstance(value, kind) else value for name, value in row.items()}
        for row in rows
    ]


def _stored(image: Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    lossless = "PNG" if image.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA") else "TIFF"
    image.save(buffer, format=lossless)
    return {"bytes": buffer.getvalue(), "path": None}


def checked_images(values: pa.ChunkedArray, column: str, split: str) -> pa.ChunkedArray:
    """Return a column of images after a look at the head of each; the pixels are not read yet.

    Raises:
        InputError: another kind of column, or a row whose image cannot be opened.
    """
    kind = values.type
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if fields != FIELDS:
        raise InputError(
            f"column {column!r} of {split} holds {kind}, but images must be Pillow images, a "
            "datasets.Image column (cast_column does it for paths), or a folder with one folder of "
            "images per class: give another column"
        )
    check_pillow()
    number = 0
    for chunk in values.chunks:
        for scalar in chunk:
            number += 1
            _check_head(scalar.as_py(), f"row {number} of {split}")
    return values


def _check_head(value: Mapping[str, Any], where: str) -> None:
    if value["bytes"] is None and value["path"] is None:
        raise InputError(f"{where} has no image: complete the row or take it out")
    try:
        _open(value).close()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for a broken file
        raise InputError(
            f"{where} holds no image that can be opened ({_name(value)}): {_reason(error)}"
        ) from error


def opened(value: Mapping[str, Any], channels: int) -> Image:
    """Read one image with all its pixels.

    Args:
        value: `bytes`, the content of its file, or `path`.
        channels: of the model, 1 for grey or 3 for colour; the image is converted.

    Raises:
        InputError: the file is broken behind its head.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a palette's transparency has no meaning to a model
            with _open(value) as image:
                return image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"the image {_name(value)} is broken ({_reason(error)}): take it out of the data"
        ) from error


def _open(value: Mapping[str, Any]) -> Image:
    from PIL import Image as pillow  # optional, see `check_pillow`

    stored = value["bytes"]
    return pillow.open(io.BytesIO(stored) if stored is not None else value["path"])


def _name(value: Mapping[str, Any]) -> str:
    return repr(value["path"]) if value["path"] else f"of {len(value['bytes'])} bytes"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def digests(values: pa.ChunkedArray) -> pa.Array:
    """Return the sha256 of every image's file, so that equal images are known wherever they lie."""
    return pa.array(
        [_digest(scalar.as_py()) for chunk in values.chunks for scalar in chunk], type=pa.string()
    )


def _digest(value: Mapping[str, Any]) -> str:
    stored = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
    return hashlib.sha256(stored).hexdigest()


def random_image(number: int, size: int = 32) -> dict[str, Any]:
    """Return an image of random grey values, the same on every machine, as it would be stored.

    Args:
        number: of the image; each has other values.
        size: of both sides, in pixels.
    """
    generator = generator_for(0, "random image", number)
    values = torch.randint(0, 256, (size * size,), generator=generator)
    return grey_image(size, size, values.tolist())


def grey_image(width: int, height: int, values: Sequence[int]) -> dict[str, Any]:
    r"""Return grey values as a stored image, in a format (PGM) that is the same on every machine.

    Args:
        width: in pixels.
        height: in pixels.
        values: row by row, each from 0 (black) to 255 (white).

    >>> grey_image(2, 1, [0, 65])["bytes"]
    b'P5\n2 1\n255\n\x00A'
    """
    head = f"P5\n{width} {height}\n255\n".encode()
    return {"bytes": head + bytes(values), "path": None}


def shown(value: Mapping[str, Any]) -> str:
    """Return one image as a reader of a table sees it: its size and how colours are stored."""
    with _open(value) as image:
        return f"image of {image.width} x {image.height} ({image.mode})"

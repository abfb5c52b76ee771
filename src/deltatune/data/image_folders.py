"""Folders of images in, one table per split out: the folder that an image lies in is its class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from deltatune.errors import InputError

__all__ = ["SUFFIXES", "are_in", "read"]

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
STORED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def are_in(folder: Path) -> bool:
    """Tell whether a folder holds images by class, `CLASS/IMAGE` or `SPLIT/CLASS/IMAGE`."""
    return any(_images(place) for place in (*_folders(folder), *_grandchildren(folder)))


def read(folder: Path) -> Mapping[str, pa.Table]:
    """List the images of a folder; their files are opened only when they are used.

    Args:
        folder: holds `CLASS/IMAGE`, all of it for training, or `SPLIT/CLASS/IMAGE`.

    Returns:
        Name of a split as the folder has it -> columns `image` (the path) and `label` (the class),
        in order of class and file name.

    Raises:
        InputError: images lie in both depths, so that nobody could tell splits from classes.
    """
    direct = [place for place in _folders(folder) if _images(place)]
    nested = [place for place in _grandchildren(folder) if _images(place)]
    if direct and nested:
        raise InputError(
            f"folder {folder} has images in {direct[0].relative_to(folder)} and in "
            f"{nested[0].relative_to(folder)}: lay all of them out as train/CLASS/IMAGE"
        )
    if direct:
        return {"train": _table(direct)}
    splits = {place.parent.name: place.parent for place in nested}
    return {name: _table(_folders(split)) for name, split in splits.items()}


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


def _grandchildren(folder: Path) -> list[Path]:
    return [inner for entry in _folders(folder) for inner in _folders(entry)]


def _images(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)


def _table(classes: list[Path]) -> pa.Table:
    rows = [(image.absolute(), place.name) for place in classes for image in _images(place)]
    stored = [{"bytes": None, "path": str(image)} for image, _ in rows]
    labels = [label for _, label in rows]
    return pa.table({"image": pa.array(stored, type=STORED), "label": pa.array(labels)})

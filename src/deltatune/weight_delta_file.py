"""The file of a `WeightDelta`: safetensors, dense or sparse tensor by tensor, streamed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltatune.checkpoints import SafetensorsFiles, open_safetensors
from deltatune.errors import InputError
from deltatune.files import TensorFile, open_tensors_atomically
from deltatune.lazy_tensors import LazyTensors

__all__ = ["FILE_NAME", "read", "write"]

FILE_NAME = "delta.safetensors"
FORMAT = "deltatune.weight_delta"
VERSION = "1"
# Behind the name of a base weight, which holds no colon: it is made of attribute names.
INDICES, VALUES, REPLACED = "::indices", "::values", "::replaced"


def write(path: Path, changes: Mapping[str, Tensor], replaced: Mapping[str, Tensor]) -> None:
    """Write a delta, whole or not at all, holding one change at a time.

    A change is stored as flat int64 indices and float32 values where that takes fewer bytes than
    the dense tensor: 12 bytes an entry against 4, so below one third of the entries.

    Args:
        path: the file.
        changes: base weight name -> its change, float32.
        replaced: name -> a tensor without a base, any dtype.

    Raises:
        OSError: the file could not be written; the target is as it was.
    """
    room = sum(_header_bytes(name) for name in [*changes, *replaced])
    with open_tensors_atomically(path, header_bytes=room) as file:
        shapes = {name: _add(file, name, changes[name]) for name in changes}
        for name in replaced:
            file.add(name + REPLACED, replaced[name])
        file.metadata.update(format=FORMAT, version=VERSION, shapes=json.dumps(shapes))


def _header_bytes(name: str) -> int:
    # At most two entries of the header and one of the shapes, whose JSON is quoted once more.
    entries = TensorFile.bytes_for({name + INDICES: None, name + VALUES: None})
    return entries + len(json.dumps(json.dumps(name))) + 256


def _add(file: TensorFile, name: str, change: Tensor) -> list[int]:
    flat = change.contiguous().reshape(-1)
    # Compared as bits, so that a negative zero comes back as one. Counted first, since the indices
    # of a dense change take twice its memory.
    bits = flat.view(torch.int32)
    if int(bits.count_nonzero()) * (8 + 4) < flat.numel() * 4:
        indices = bits.nonzero().reshape(-1)
        file.add(name + INDICES, indices)
        file.add(name + VALUES, flat[indices])
    else:
        file.add(name, change)
    return list(change.shape)


def read(path: str | Path) -> tuple[LazyTensors, LazyTensors]:
    """Open a delta's file, or the folder that holds one.

    Returns:
        the changes and the replaced tensors, both read when asked for.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    file_path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    with open_safetensors(file_path) as file:
        metadata = file.metadata() or {}
        names = list(file.keys())
    shapes = _shapes(file_path, metadata)
    stored = SafetensorsFiles(dict.fromkeys(names, file_path), f"the delta {str(file_path)!r}")
    for name in shapes:
        if name not in stored and not (name + INDICES in stored and name + VALUES in stored):
            raise InputError(
                f"delta file {str(file_path)!r} lacks the change of {name}: save it again"
            )
    replaced = [name.removesuffix(REPLACED) for name in names if name.endswith(REPLACED)]
    return _Changes(stored, shapes), _Replaced(stored, replaced)


def _shapes(path: Path, metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"file {str(path)!r} is no delta: give one written by WeightDelta.save, or use "
            f"WeightDelta.from_difference for whole checkpoints"
        )
    if metadata.get("version") != VERSION:
        raise InputError(
            f"delta file {str(path)!r} has version {metadata.get('version')}, this deltatune reads "
            f"{VERSION}: install the newer deltatune"
        )
    try:
        plain: dict[str, Any] = json.loads(metadata["shapes"])
        return {name: tuple(int(size) for size in shape) for name, shape in plain.items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"delta file {str(path)!r} holds no readable shapes: save it again"
        ) from error


class _Changes(LazyTensors):
    def __init__(self, stored: SafetensorsFiles, shapes: dict[str, tuple[int, ...]]) -> None:
        self._stored = stored
        self._shapes = shapes

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name in self._stored:
            return self._stored[name]
        flat = torch.zeros(math.prod(shape), dtype=torch.float32)
        flat[self._stored[name + INDICES]] = self._stored[name + VALUES]
        return flat.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]


class _Replaced(LazyTensors):
    def __init__(self, stored: SafetensorsFiles, names: list[str]) -> None:
        self._stored = stored
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name + REPLACED]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored.shape(name + REPLACED)

"""Writing files and folders whole or not at all.

Everything is written under a temporary name beside its target, brought to the disk, and renamed.
Whoever reads the target sees the old content or the new, never half of either; when writing fails,
for example on a full disk, the target stays as it was and nothing is left beside it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = [
    "PARTIAL",
    "TensorFile",
    "open_tensors_atomically",
    "replace_folder_atomically",
    "save_tensors_atomically",
    "write_bytes_atomically",
    "write_json_atomically",
    "write_text_atomically",
]

PARTIAL = ".*.partial"  # the names of unfinished files and folders, as a pattern

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; missing parent folders are made.

    Raises:
        OSError: the text could not be written; the target is as it was.
    """
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: str | Path, content: bytes) -> None:
    """Write a file, whole or not at all; missing parent folders are made.

    Raises:
        OSError: the file could not be written; the target is as it was.
    """
    with _atomic(Path(path)) as file:
        file.write(content)


def write_json_atomically(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all.

    Raises:
        TypeError, ValueError: the value holds what JSON has no form for (a NaN, a tensor).
        OSError: the file could not be written; the target is as it was.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")


def save_tensors_atomically(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, asking the mapping for one tensor at a time.

    Args:
        path: the file.
        tensors: may be lazy: no tensor is held after the next one was asked for.
        metadata: strings for the file's header.

    Raises:
        OSError: the file could not be written; the target is as it was.
    """
    header_bytes = TensorFile.bytes_for(tensors) + len(json.dumps(dict(metadata or {})))
    with open_tensors_atomically(path, header_bytes=header_bytes) as file:
        file.metadata.update(metadata or {})
        for name in tensors:
            file.add(name, tensors[name])


class TensorFile:
    """A safetensors file that is written tensor by tensor.

    The library's own writer wants all tensors at once, which for a lazy delta would mean the size
    of a whole model in memory. Here room for the header is left free, the tensors follow, and the
    header is filled in at the end: the format lets spaces follow the header's JSON.

    Attributes:
        metadata: strings for the header, to be filled until the file closes.
    """

    def __init__(self, file: BinaryIO, *, header_bytes: int) -> None:
        """Leave room for the header.

        Args:
            file: open for writing, at its start.
            header_bytes: room for names, shapes and metadata; `bytes_for` says how much names take.
        """
        self.metadata: dict[str, str] = {}
        self._file = file
        self._room = (
            -(-(header_bytes + 64) // 8) * 8
        )  # the format wants tensors to start at 8 bytes
        self._entries: dict[str, Any] = {}
        self._offset = 0
        file.seek(8 + self._room)

    @staticmethod
    def bytes_for(names: Mapping[str, Any]) -> int:
        """Return how many header bytes the entries of these names take at most."""
        # Escaping makes a character six bytes at most; the rest is dtype, shape and two offsets.
        return sum(6 * len(name) + 256 for name in names)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor of any layout and device, row-major."""
        assert name not in self._entries
        assert name != "__metadata__"
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        size = flat.numel() * flat.element_size()
        if size:
            self._file.write(flat.view(torch.uint8).numpy().data)
        self._entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._offset, self._offset + size],
        }
        self._offset += size

    def finish(self) -> None:
        """Fill in the header."""
        header = {"__metadata__": self.metadata, **self._entries}
        text = json.dumps(header, separators=(",", ":")).encode("ascii")
        assert len(text) <= self._room, "header_bytes was too small for the names and metadata"
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + text.ljust(self._room))


@contextmanager
def open_tensors_atomically(path: str | Path, *, header_bytes: int) -> Iterator[TensorFile]:
    """Open a safetensors file for writing tensor by tensor; it appears when the block ends.

    Args:
        path: the file.
        header_bytes: room for names, shapes and metadata.

    Raises:
        OSError: the file could not be written; the target is as it was.
    """
    with _atomic(Path(path)) as file:
        tensor_file = TensorFile(file, header_bytes=header_bytes)
        yield tensor_file
        tensor_file.finish()


@contextmanager
def replace_folder_atomically(folder: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `folder`, which takes its place when the block ends.

    A folder that stood there before is renamed away first and removed last; it is back in its place
    if the new one cannot be renamed. When the block raises, nothing changes.

    Raises:
        OSError: something could not be written or renamed; the target is as it was.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _beside(target), _beside(target)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            _bring_to_disk(path)
        _bring_to_disk(temporary)
        _swap(temporary, target, old)
        _bring_to_disk(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _swap(temporary: Path, target: Path, old: Path) -> None:
    # No portable call exchanges two folders: between the two renames the target has no content,
    # never half a content.
    existed = target.exists()
    if existed:
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if existed:
            old.rename(target)
        raise


@contextmanager
def _atomic(target: Path) -> Iterator[BinaryIO]:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _bring_to_disk(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")


def _bring_to_disk(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # elsewhere folders cannot be opened, and renames need no help
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

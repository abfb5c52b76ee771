"""Reading the tensors of a model, a state dict or a safetensors checkpoint, one at a time."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deltatune.errors import InputError
from deltatune.lazy_tensors import LazyTensors

__all__ = ["SafetensorsFiles", "State", "StateDict", "open_safetensors", "open_state"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class State(LazyTensors):
    """The tensors of one model."""

    label: str

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of one tensor without reading it."""

    @property
    def same_tensor(self) -> Mapping[str, str]:
        """Name -> the first name of the same tensor; tied weights share it."""
        return {name: name for name in self}


class StateDict(State):
    """A state dict in memory; nothing is copied."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        """Wrap a state dict; `label` is how messages call it."""
        self._tensors = tensors
        self.label = label

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of one tensor."""
        return self._tensors[name].dtype

    @cached_property
    def same_tensor(self) -> Mapping[str, str]:
        """Name -> the first name of the same memory, seen with the same shape and strides."""
        first: dict[Any, str] = {}
        same = {}
        for name, tensor in self._tensors.items():
            # Empty and meta tensors have no memory, so their address says nothing.
            has_memory = tensor.numel() > 0 and tensor.device.type != "meta"
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            same[name] = first.setdefault(place if has_memory else name, name)
        return same


class SafetensorsFiles(State):
    """Tensors in one safetensors file or several; each is read from the disk when asked for."""

    def __init__(self, files: Mapping[str, Path], label: str) -> None:
        """Wrap files.

        Args:
            files: tensor name -> the file that holds it.
            label: how messages call the checkpoint.
        """
        self._files = files
        self.label = label

    def __getitem__(self, name: str) -> Tensor:
        with open_safetensors(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        # The format does not align tensors to their element size, which some kernels rely on.
        is_aligned = tensor.data_ptr() % max(tensor.element_size(), 1) == 0
        return tensor if is_aligned else tensor.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._headers[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of one tensor.

        Raises:
            InputError: the file holds it in a form that is no plain number (a quantised one).
        """
        code = self._headers[name][1]
        if code not in _DTYPES:
            raise InputError(
                f"{name} of {self.label} is stored as {code}, which cannot be subtracted: "
                f"give a checkpoint in a float dtype"
            )
        return _DTYPES[code]

    @cached_property
    def _headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        headers = {}
        for path in dict.fromkeys(self._files.values()):
            with open_safetensors(path) as file:
                for name in file.keys():
                    piece = file.get_slice(name)
                    headers[name] = (tuple(piece.get_shape()), str(piece.get_dtype()))
        return headers


def open_safetensors(path: Path) -> Any:
    """Open one safetensors file as a context manager.

    Raises:
        InputError: the file is missing or is no safetensors file.
    """
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise InputError(f"file {str(path)!r} does not exist: check the path") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"file {str(path)!r} is not a whole safetensors file ({error}): copy or save it again"
        ) from error


def open_state(source: nn.Module | Mapping[str, Tensor] | str | Path, label: str) -> State:
    """Open anything that holds a model's tensors.

    Args:
        source: a model, a state dict, a safetensors file, the `.index.json` of a sharded one, or
            the folder of a checkpoint.
        label: how messages call it, for example "the base".

    Raises:
        InputError: the source is missing, holds only pickled weights, or is not readable.
    """
    if isinstance(source, nn.Module):
        return StateDict(source.state_dict(), label)
    if isinstance(source, Mapping):
        return StateDict(source, label)
    if not isinstance(source, str | Path):
        raise InputError(
            f"{label} is a {type(source).__name__}: give a model, a state dict or a path"
        )
    path = _weights_file(Path(source), label)
    if path.name.endswith(".index.json"):
        return SafetensorsFiles(_shards(path), f"{label} {str(source)!r}")
    with open_safetensors(path) as file:
        names = list(file.keys())
    return SafetensorsFiles(dict.fromkeys(names, path), f"{label} {str(source)!r}")


def _weights_file(path: Path, label: str) -> Path:
    if path.suffix in _PICKLES:
        raise InputError(
            f"{label} {str(path)!r} is a pickle, which can run code when opened: "
            f"convert it to safetensors"
        )
    if not path.is_dir():
        return path
    found = [*sorted(path.glob("*.safetensors.index.json")), path / "model.safetensors"]
    found = [file for file in found if file.is_file()] or sorted(path.glob("*.safetensors"))
    if len(found) == 1 or (found and found[0].name.endswith(".index.json")):
        return found[0]
    several = "several" if found else "no"
    raise InputError(
        f"{label} {str(path)!r} holds {several} *.safetensors files and no index: "
        f"give the file itself or a folder written by save_pretrained"
    )


def _shards(index: Path) -> dict[str, Path]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: index.parent / file for name, file in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"file {str(index)!r} is no index of a sharded checkpoint: it needs a 'weight_map'"
        ) from error

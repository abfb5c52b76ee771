"""State of a training run as plain files: tensors in safetensors, everything else in JSON.

Nothing is pickled, so loading a file never runs code, and every value comes back to the last bit:
JSON keeps a float by its shortest exact form, and tensors are stored as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from deltatune.errors import InputError, WorkError

__all__ = ["copy_into", "has_state", "read_state", "read_tensors", "write_state", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors, each with memory of its own, from any device."""
    owned = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    safetensors_torch.save_file(owned, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors to the CPU.

    Raises:
        InputError: the file is missing or broken.
    """
    try:
        return safetensors_torch.load_file(path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except SafetensorError as error:
        raise _broken(path, error) from error


def copy_into(places: Mapping[str, Tensor], saved: Mapping[str, Tensor], source: str) -> None:
    """Copy saved tensors into live ones of the same names, all or none.

    Args:
        places: name -> tensor to fill, on any device.
        saved: name -> tensor as read.
        source: where `saved` comes from, for messages.

    Raises:
        InputError: a name on one side only, another shape, or another dtype.
    """
    _check_same_names(set(saved), set(places), source)
    for name, place in places.items():
        _check_alike(name, saved[name], place)
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(saved[name])


def write_state(folder: Path, stem: str, value: Any) -> None:
    """Write a nest of mappings, lists, tuples, tensors, arrays and plain values.

    Args:
        folder: must exist.
        stem: name of the two files before their endings.
        value: what to write.

    Raises:
        WorkError: it holds something else.
    """
    tensors: dict[str, Tensor] = {}
    plain = _packed(value, "", tensors)
    write_tensors(folder / f"{stem}.safetensors", tensors)
    (folder / f"{stem}.json").write_text(json.dumps(plain), encoding="utf-8")


def read_state(folder: Path, stem: str) -> Any:
    """Read what `write_state` wrote, tensors on the CPU.

    Raises:
        InputError: a file is missing or broken.
    """
    path = folder / f"{stem}.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except ValueError as error:
        raise _broken(path, error) from error
    return _unpacked(plain, read_tensors(folder / f"{stem}.safetensors"))


def has_state(folder: Path, stem: str) -> bool:
    """Tell whether both files are there."""
    return all((folder / f"{stem}{ending}").is_file() for ending in (".json", ".safetensors"))


def _missing(path: Path) -> InputError:
    return InputError(
        f"{str(path.parent)!r} has no {path.name}: it is no complete checkpoint of deltatune; "
        f"resume from another one, or start anew"
    )


def _broken(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{str(path)!r} is broken ({error}): remove its checkpoint and resume from the one before"
    )


def _packed(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Turn a value into JSON; what JSON lacks becomes an object with one key, the kind."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, np.ndarray):
        return {"array": [value.dtype.str, value.tolist()]}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, list)):
        items = [_packed(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        # As pairs, because keys may be numbers, which JSON would turn into strings.
        pairs = [[key, _packed(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"mapping": pairs}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise WorkError(
        f"{path or 'the state'} is a {type(value).__name__}: a checkpoint holds only tensors and "
        f"plain values, so use an optimizer and a schedule whose state is made of these"
    )


def _unpacked(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_unpacked(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return np.array(content[1], dtype=content[0])
    if kind == "tuple":
        return tuple(_unpacked(item, tensors) for item in content)
    return {key: _unpacked(item, tensors) for key, item in content}


def _check_same_names(saved: set[str], live: set[str], checkpoint: str) -> None:
    for names, problem in (
        (live - saved, "has no values for"),
        (saved - live, "has values for what does not train here:"),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"checkpoint {checkpoint!r} {problem} {shown}{more}: resume with the recipe and "
                f"model that it was written with"
            )


def _check_alike(name: str, saved: Tensor, place: Tensor) -> None:
    if saved.shape != place.shape or saved.dtype != place.dtype:
        raise InputError(
            f"the checkpoint holds {name} as {saved.dtype} {tuple(saved.shape)}, the model as "
            f"{place.dtype} {tuple(place.shape)}: resume with the recipe and model of that run"
        )

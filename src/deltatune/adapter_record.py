"""What lies beside a saved delta: the tensors that its file must hold, and the base it is for.

The file `base.json` means nothing to peft, which passes it over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.accounting import account, listed
from deltatune.base_record import BaseRecord
from deltatune.checkpoints import SafetensorsFiles, open_safetensors
from deltatune.errors import InputError
from deltatune.files import write_json_atomically

__all__ = ["FILE_NAME", "AdapterRecord"]

FILE_NAME = "base.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """The record of a saved delta.

    Args:
        base: what it was trained on, without what the delta holds whole.
        shapes: tensor in the delta's file -> its shape.
        zeros: those tensors that hold nothing but zeros.
    """

    base: BaseRecord
    shapes: Mapping[str, tuple[int, ...]]
    zeros: frozenset[str]

    @classmethod
    def of(cls, folder: Path, base: BaseRecord) -> AdapterRecord:
        """Record what was written into a folder."""
        tensors = _tensors(folder)
        return cls(
            base=base,
            shapes={name: tensors.shape(name) for name in tensors},
            zeros=frozenset(name for name in tensors if not tensors[name].any()),
        )

    @classmethod
    def load(cls, folder: Path) -> AdapterRecord:
        """Read the record of a folder.

        Raises:
            InputError: there is none, or it is not readable.
        """
        path = folder / FILE_NAME
        try:
            plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            shapes = {name: tuple(shape) for name, shape in plain["tensors"].items()}
            zeros = frozenset(plain["zeros"])
            base = BaseRecord.from_plain(plain["base"])
        except FileNotFoundError as error:
            raise InputError(
                f"{str(folder)!r} holds no {FILE_NAME}, which says what the delta was trained on: "
                f"copy the whole folder"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{str(path)!r} is not readable: copy it again from where it was written"
            ) from error
        return cls(base=base, shapes=shapes, zeros=zeros)

    def save(self, folder: Path) -> None:
        """Write the record beside the delta, whole or not at all."""
        plain = {
            "format": FORMAT,
            "base": self.base.to_plain(),
            "tensors": {name: list(shape) for name, shape in self.shapes.items()},
            "zeros": sorted(self.zeros),
        }
        write_json_atomically(folder / FILE_NAME, plain)

    def check_file(self, folder: Path) -> None:
        """Account for every tensor of the delta's file.

        Raises:
            InputError: one is missing, renamed, unknown, of another shape, or has lost its values.
        """
        tensors = _tensors(folder)
        fix = "copy the file again from where it was written"
        given = {name: tensors.shape(name) for name in tensors}
        account(tensors.label, self.shapes, given, fix)
        lost = [n for n in self.shapes if n not in self.zeros and not tensors[n].any()]
        if lost:
            raise InputError(
                f"{tensors.label} holds only zeros in {listed(lost)}, which had trained values "
                f"when it was saved, so that loading it would change nothing there: {fix}"
            )


def _tensors(folder: Path) -> SafetensorsFiles:
    files = sorted(folder.rglob("*.safetensors"))  # a host of a block lies below
    names: dict[str, Path] = {}
    for path in files:
        with open_safetensors(path) as file:
            names.update(dict.fromkeys(file.keys(), path))
    label = f"the delta {str(files[0] if len(files) == 1 else folder)!r}"
    return SafetensorsFiles(names, label)

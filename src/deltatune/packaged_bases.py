"""The small pre-trained models that come with the package: `deltatune/NAME` where one is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltatune.data.offline import known_tasks
from deltatune.data.offline.known_tasks import OWNER
from deltatune.errors import InputError, unknown_name

__all__ = ["FOLDER", "known", "locate", "refuse_as_data"]

FOLDER = Path(__file__).parent / "bases"


def known() -> Mapping[str, Path]:
    """Return the folder of every base by its name, in alphabetical order."""
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/config.json"))}


def locate(name: str) -> Path:
    """Return the folder that `deltatune/NAME` means where a model is named.

    Raises:
        InputError: no such base (nearest names given), or the name of a task.
    """
    base = name.removeprefix(OWNER)
    bases = known()
    if base in bases:
        return bases[base]
    task = base.partition(":")[0]
    if task in known_tasks.known():
        raise InputError(
            f"{name!r} is an offline task and no model: give it as the data, with a model such as "
            f"{known_tasks.known()[task].base}"
        )
    raise unknown_name("packaged base", base, bases)


def refuse_as_data(name: str) -> None:
    """Refuse a base where data is named.

    Raises:
        InputError: the name is a base's.
    """
    base = name.removeprefix(OWNER).partition(":")[0]
    if base in known() and base not in known_tasks.known():
        raise InputError(
            f"{name!r} is a packaged base and no data: give it as the model, with data such as a "
            f"file or an offline task ('deltatune tasks' lists them)"
        )

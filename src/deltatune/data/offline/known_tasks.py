"""Names in, offline tasks out: what `deltatune/NAME:option=value` means where data is named."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

import datasets

import deltatune.data.offline as room
from deltatune.data.offline.offline_task import OfflineTask
from deltatune.errors import InputError, unknown_name

__all__ = ["OWNER", "is_offline", "known", "load", "named"]

OWNER = "deltatune/"


@functools.cache
def known() -> Mapping[str, OfflineTask]:
    """Return all offline tasks by name, in alphabetical order."""
    modules = [
        importlib.import_module(f"{room.__name__}.{module.name}")
        for module in pkgutil.iter_modules(room.__path__)
    ]
    tasks = [module.TASK for module in modules if hasattr(module, "TASK")]
    return MappingProxyType({task.name: task for task in sorted(tasks, key=lambda task: task.name)})


def is_offline(name: object) -> bool:
    """Tell whether a name is one of ours, known or mistyped."""
    return isinstance(name, str) and name.startswith(OWNER)


def named(name: str) -> tuple[OfflineTask, dict[str, int]]:
    """Take `deltatune/NAME`, or with options `deltatune/NAME:difficulty=2,seed=1`, apart.

    Raises:
        InputError: no such task (nearest names given), or an option that is no `name=number`.
    """
    task, _, options = name.removeprefix(OWNER).partition(":")
    if task not in known():
        raise unknown_name("offline task", task, known())
    return known()[task], dict(_option(part, name) for part in options.split(",") if part)


def _option(part: str, name: str) -> tuple[str, int]:
    option, _, number = part.partition("=")
    try:
        return option.strip(), int(number)
    except ValueError as error:
        raise InputError(
            f"option {part!r} of {name!r} cannot be read: write name=number, for example "
            f"{OWNER}bug-repair:difficulty=2,seed=1,train=500"
        ) from error


def load(name: str) -> datasets.DatasetDict:
    """Build what a name means.

    Raises:
        InputError: the name, one of its options or a number is wrong.
    """
    task, options = named(name)
    return task.load(**options)

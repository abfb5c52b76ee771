"""The objective of a run: the recipe's own where the data allow it, else the task's."""

from __future__ import annotations

from typing import Any

from deltatune import parts
from deltatune.errors import InputError, NotComposable

__all__ = ["objective_for"]


def objective_for(given: Any, task: str) -> Any:
    """Return the objective that a run trains by.

    Args:
        given: the recipe's objective, or None for the one that declares the task as its own.
        task: of the data.

    Raises:
        NotComposable: the recipe's objective is for other tasks.
        InputError: none is given, and none declares the task.
    """
    if given is not None:
        _check_task(given, task)
        return given
    for declared in parts.known("objectives").values():
        if task in declared.options.tasks:
            return declared.options()
    raise InputError(
        f"no objective declares the task {task!r} as its own: give the recipe an objective"
    )


def _check_task(objective: Any, task: str) -> None:
    """Refuse an objective on data of another task: it may run, on labels that mean something else.

    One that names no task of its own takes any.
    """
    if objective.tasks and task not in objective.tasks:
        raise NotComposable(
            f"the objective {type(objective).__name__} is for {' and '.join(objective.tasks)}, the "
            f"data's task is {task}: leave the objective out, or give the task that is meant"
        )

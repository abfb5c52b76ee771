"""The tasks that data can be: which columns they take, what the model reads, what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["TASKS", "DataTask"]


@dataclass(frozen=True, kw_only=True)
class DataTask:
    """What one kind of data asks of a model.

    Args:
        roles: of the columns that it needs.
        optional: roles that it can do without.
        reads: what goes into the model: token ids, or pixels.
        answers: a class, a number, or one token after the other.
    """

    roles: tuple[str, ...]
    optional: tuple[str, ...] = ()
    reads: Literal["text", "image"] = "text"
    answers: Literal["class", "number", "tokens"] = "tokens"

    @property
    def has_fresh_head(self) -> bool:
        """Whether a head of its own is drawn, which trains beside whatever delta there is."""
        return self.answers != "tokens"


TASKS: Mapping[str, DataTask] = MappingProxyType(
    {
        "classification": DataTask(
            roles=("text", "label"), optional=("second_text",), answers="class"
        ),
        "regression": DataTask(
            roles=("text", "label"), optional=("second_text",), answers="number"
        ),
        "image_classification": DataTask(roles=("image", "label"), reads="image", answers="class"),
        "completion": DataTask(roles=("prompt", "completion"), optional=("context",)),
        "chat": DataTask(roles=("messages",)),
        "text": DataTask(roles=("text",)),
    }
)

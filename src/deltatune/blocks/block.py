"""The contract of a block: what a method adds to a model beside a change of its weights."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.sites import Sites

__all__ = ["Block", "Surroundings", "reading"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a block finds where it is put.

    Args:
        model: as it trains, with the host's delta in it.
        sites: of the base.
        changed: names of the base weights that the host's delta changes.
        without_delta: makes a block of code in which the model's weights are those of the base.
        is_delta_off: tells whether the host's delta is switched off, by whomever.
        task_type: peft's name of the task, or None.
    """

    model: nn.Module
    sites: Sites
    changed: tuple[str, ...]
    without_delta: Callable[[], AbstractContextManager[Any]]
    is_delta_off: Callable[[], bool]
    task_type: str | None = None


class Block(nn.Module, ABC):
    """A part of the model of its own: it holds what it trains, and acts by itself once installed.

    The modules of the base keep their names, so that adapters are saved as ever; a block hooks into
    them instead. Its own parameters are float32 and become parameters of the model under `block`.

    Attributes:
        Options: the dataclass of options.
        roles: own parameter -> role, for update rules that treat them apart.
        adds_to_loss: whether `auxiliary` has anything to add.
        may_rest: own parameters that need not move in the first steps.
        why_no_change: why it cannot be folded into weights, for the refusal.
        around: where it was put.
    """

    Options: ClassVar[type[Any]]
    roles: ClassVar[dict[str, str]] = {}
    adds_to_loss: ClassVar[bool] = False
    may_rest: ClassVar[tuple[str, ...]] = ()
    why_no_change: ClassVar[str]
    around: Surroundings

    def __init__(self, options: Any) -> None:
        """Keep the options; a subclass makes its parameters."""
        super().__init__()
        self.options = options
        self.is_off = False

    @classmethod
    @abstractmethod
    def made_for(cls, options: Any, around: Surroundings, generator: torch.Generator) -> Block:
        """Make the block for a model, and leave the model as it is.

        Raises:
            NotComposable: a model or a host that the block cannot act on.
        """

    @abstractmethod
    def install(self, around: Surroundings) -> None:
        """Let the block act in the model."""

    def role_of(self, below: Sequence[str]) -> str:
        """Return the role of a parameter, from the steps of its path within the block."""
        return self.roles.get(below[0], "values")

    @property
    def acts(self) -> bool:
        """Whether the block does anything now: not while it or its host's delta is off."""
        return not (self.is_off or self.around.is_delta_off())

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Let the model act as if it had no such block, for the length of a block of code."""
        before, self.is_off = self.is_off, True
        try:
            yield
        finally:
            self.is_off = before

    def reading(self, batch: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Tell the block which batch goes through the model now, labels included."""
        return contextlib.nullcontext()

    def auxiliary(self, model: nn.Module) -> Tensor:
        """Return what the last forward pass adds to the loss, `()`; see `adds_to_loss`."""
        raise NotImplementedError

    def figures(self) -> Mapping[str, Any]:
        """Return what a run records of this block after training, as plain values for JSON."""
        return {}


@contextlib.contextmanager
def reading(model: nn.Module, batch: Mapping[str, Any]) -> Iterator[None]:
    """Tell the blocks of a model, if it has any, which batch goes through it, labels included."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Block):
                stack.enter_context(module.reading(batch))
        yield

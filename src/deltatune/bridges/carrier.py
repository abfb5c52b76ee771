"""The contract of a carrier: how a delta gets into a model and out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from deltatune.calibration import Calibration
from deltatune.part import Selection
from deltatune.sites import Sites

__all__ = ["Carrier", "Injection", "Rhythm"]


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What a carrier is told when it prepares a model.

    Args:
        sites: places of the base.
        selection: where the delta may live.
        trained_modules: modules that train whole beside the delta (a fresh head).
        seed: of start values.
        task_type: peft's name of the task, which decides the wrapper's `forward`.
        calibration: batches of training examples, for starts that are measured; None without data.
    """

    sites: Sites
    selection: Selection
    trained_modules: Sequence[str] = ()
    seed: int = 0
    task_type: str | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """What a delta asks of the training loop.

    Args:
        auxiliary: terms that are added once to the loss of every optimizer step, from model to
            `()`.
        apart: makes a block in which the model adds no such terms to a loss that it computes.
        begin: called before the first step with the number of steps of the whole run.
        after_step: called after each optimizer step, while its gradients are there, with the number
            of steps done, from 1.
        may_rest: names of trained parameters that may stay or come back to where they started.
        reading: makes a block of code in which a batch, labels included, goes through the model;
            None where it makes no difference.
    """

    auxiliary: tuple[Callable[[nn.Module], Tensor], ...] = ()
    apart: Callable[[], AbstractContextManager[Any]] = nullcontext
    begin: Callable[[int], None] | None = None
    after_step: Callable[[int], None] | None = None
    may_rest: frozenset[str] = frozenset()
    reading: Callable[[Mapping[str, Any]], AbstractContextManager[Any]] | None = None

    def while_reading(self, batch: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Return the block of code in which a batch goes through the model."""
        return nullcontext() if self.reading is None else self.reading(batch)


class Carrier(Protocol):
    """Puts a delta into a base model, keeps it, and takes it out.

    Attributes:
        trains_base: whether base weights move (then they are kept in float32).
        first_export: the form of an export that a finished run suggests, one that this delta has;
            empty where it has none and is loaded by `deltatune.load` only.
    """

    trains_base: bool
    first_export: str

    def prepare(self, base: nn.Module, injection: Injection) -> nn.Module:
        """Return the model to train: everything frozen but the delta and the trained modules."""
        ...

    def rhythm(self, model: nn.Module) -> Rhythm:
        """Return what the delta in a prepared model asks of the training loop."""
        ...

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Let a prepared model that has not trained act as its base for the length of a block."""
        ...

    def figures(self, model: nn.Module, sites: Sites) -> Mapping[str, Any]:
        """Return what is worth recording of the trained delta, as plain values for JSON."""
        ...

    def save(self, model: nn.Module, folder: Path, reload_base: Callable[[], nn.Module]) -> None:
        """Write the trained delta into an existing folder."""
        ...

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Return the base with a saved delta on it."""
        ...

    def merged(self, model: nn.Module) -> nn.Module:
        """Return a plain model with the delta folded in."""
        ...

    def save_as_lora(self, model: nn.Module, folder: Path) -> None:
        """Write the delta as a plain LoRA adapter, exactly."""
        ...

"""Batches to measure a model on before training, and the care to leave it as it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.errors import InputError
from deltatune.objectives.objective import Objective
from deltatune.training_mode import mode_kept

__all__ = ["AT_ONCE", "Calibration", "left_alone"]

# Scalars that are gathered in one pass over the batches, 1 GiB in float32.
AT_ONCE = 2**28


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The batches that statistics are measured on, the same for everybody who asks.

    Args:
        batches: a list or `DataLoader` that can be gone through again and again; each batch a
            mapping of the model's inputs, with `labels` where a loss is needed.
        objective: the loss; None takes the one that the model itself computes from its labels.
        seed: of the order of a loader that shuffles.
    """

    batches: Iterable[Mapping[str, Any]]
    objective: Objective | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise InputError(
                f"the calibration batches are a {type(self.batches).__name__}, which can be read "
                f"only once: give a list of batches or a DataLoader"
            )

    def take(self, number: int, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
        """Return the first batches, or all where there are fewer, always the same ones.

        Args:
            number: of batches, from 1 up.
            device: where their tensors go.

        Raises:
            InputError: there is no batch, or one is no mapping.
        """
        with _seeded(self.batches, self.seed):
            taken = list(itertools.islice(iter(self.batches), number))
        if not taken:
            raise InputError("the calibration data has no batch: give at least one")
        for batch in taken:
            if not isinstance(batch, Mapping):
                raise InputError(
                    f"a calibration batch is a {type(batch).__name__}: give mappings of the "
                    f"model's inputs, as a data collator of transformers makes them"
                )
        return [_on(batch, device) for batch in taken]


@contextmanager
def _seeded(batches: object, seed: int) -> Iterator[None]:
    """Seed what a loader draws its order from; give all back, so that training sees no change.

    A loader and its samplers may have generators of their own, beside the global one.
    """
    sampler = getattr(batches, "sampler", None)
    inner = getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    owners = (batches, sampler, inner)
    own = {id(g): g for owner in owners if (g := getattr(owner, "generator", None)) is not None}
    before = [(generator, generator.get_state()) for generator in own.values()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for generator in own.values():
            generator.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state in before:
                generator.set_state(state)


def _on(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


@contextmanager
def left_alone(model: nn.Module) -> Iterator[torch.device]:
    """Bring a model into evaluation mode, all frozen; give it back as it was; yield its device."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    device = next(iter(flags)).device
    with mode_kept(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            model.eval().requires_grad_(False)
            yield device
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)

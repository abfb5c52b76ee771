"""Putting changes into the weights of a model and taking them out again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltatune.errors import InputError, NotMergeable, unknown_name
from deltatune.lazy_tensors import LazyTensors

__all__ = ["add", "put", "targets_of"]


def targets_of(tensors: LazyTensors, model: nn.Module) -> dict[str, Tensor]:
    """Find the tensors of a model that bear the given names; none is changed.

    Args:
        tensors: changes, or tensors to be taken over whole.
        model: without adapters.

    Raises:
        InputError: the model lacks a name, or has another shape there.
        NotMergeable: a weight is quantised, or has no values (device `meta`).
    """
    # Tied weights may be called by any of their names.
    known: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    known |= dict(model.named_buffers(remove_duplicate=False))
    found = {}
    for name in tensors:
        if name not in known:
            raise unknown_name("weight of the model", name, known, limit=3)
        _check(name, known[name], tensors.shape(name))
        found[name] = known[name]
    return found


def _check(name: str, target: Tensor, shape: tuple[int, ...]) -> None:
    if not target.dtype.is_floating_point:
        raise NotMergeable(
            f"{name} is stored as {target.dtype}: a change cannot be added to quantised weights, "
            f"load the model without quantisation"
        )
    if target.is_meta:
        raise NotMergeable(f"{name} has no values (device meta): load the model's weights first")
    if tuple(target.shape) != shape:
        raise InputError(
            f"{name} has the shape {list(target.shape)} in the model but {list(shape)} in the "
            f"delta: use the base that the delta was made from"
        )


@torch.no_grad()
def add(changes: Mapping[str, Tensor], targets: Mapping[str, Tensor], factor: float) -> None:
    """Add `factor` times each change to its target, in float32 (float64 to float64), cast once."""
    for name, target in targets.items():
        # The sum is a tensor of its own: a lazy change may read the very weight that moves.
        target.copy_(_sum(target, changes[name], factor))


def _sum(target: Tensor, change: Tensor, factor: float) -> Tensor:
    # A function of its own lets go of each change before the next one is made.
    wide = torch.promote_types(target.dtype, torch.float32)
    return torch.add(target.to(wide), change.to(device=target.device, dtype=wide), alpha=factor)


@torch.no_grad()
def put(values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """Overwrite each target with its value."""
    for name, target in targets.items():
        target.copy_(values[name])

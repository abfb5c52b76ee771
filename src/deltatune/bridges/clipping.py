"""Clipping by sets: gradients in different units are not measured by one norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["clip", "has_sets", "sets_of", "total_norm"]


def has_sets(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether any group of an optimizer is clipped apart."""
    return any(group.get("clipped_with") for group in optimizer.param_groups)


def sets_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, list[nn.Parameter]]:
    """Return the parameters by the set that their optimizer group names.

    Args:
        model: as it trains; what is in no group belongs to the common set, whose name is empty.
        optimizer: its groups may have a text `clipped_with`.
    """
    of_group = {
        id(parameter): group.get("clipped_with", "")
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    sets: dict[str, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        sets.setdefault(of_group.get(id(parameter), ""), []).append(parameter)
    return sets


def clip(sets: Iterable[list[nn.Parameter]], max_norm: float) -> Tensor:
    """Scale the gradients of each set down to one norm, in place.

    Args:
        sets: parameters, of which some may have no gradient.
        max_norm: bound of the 2-norm of each set.

    Returns:
        The 2-norm of all sets together before, `()`.
    """
    norms = []
    for members in sets:
        if any(parameter.grad is not None for parameter in members):
            norms.append(_whole(torch.nn.utils.clip_grad_norm_(members, max_norm)))
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def total_norm(model: nn.Module) -> Tensor:
    """Return the 2-norm of all gradients, `()`, the same in all processes that share them."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return _whole(torch.nn.utils.get_total_norm(gradients))


def _whole(norm: Tensor) -> Tensor:
    # Of sharded gradients each process holds a piece until the whole is asked for.
    return norm.full_tensor() if isinstance(norm, DTensor) else norm

"""Has every tensor moved that trains, and none that does not?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltatune.errors import WorkError

__all__ = ["Movement"]

SAMPLE = 1024  # entries of a frozen tensor that are compared


class Movement:
    """Remembers tensors cheaply, to compare them after some steps.

    Trained tensors are remembered by two sums over all entries, in float64, because a step may move
    only few of them (rows of an embedding). Frozen tensors are remembered by evenly spaced entries:
    what wrongly trains moves everywhere.
    """

    def __init__(self, model: nn.Module) -> None:
        """Remember every parameter of the model as it is."""
        parameters = dict(model.named_parameters())
        self._trained = {
            n: _sums(p) for n, p in parameters.items() if p.requires_grad and p.numel()
        }
        self._frozen = {n: _sample(p) for n, p in parameters.items() if not p.requires_grad}

    def check(self, model: nn.Module) -> None:
        """Compare with now.

        Raises:
            WorkError: with the names of what should have moved and did not, or the other way.
        """
        parameters = dict(model.named_parameters())
        still = [n for n in self._trained if torch.equal(_sums(parameters[n]), self._trained[n])]
        moved = [n for n in self._frozen if not _same(_sample(parameters[n]), self._frozen[n])]
        if moved:
            raise WorkError(
                f"{_listed(moved)} should be frozen but moved: keep frozen weights out of the "
                f"optimizer and change no base weight while an adapter trains on it"
            )
        if still:
            raise WorkError(
                f"{_listed(still)} should train but did not move: nothing uses them, their "
                f"learning rate is 0, or their steps round to zero in their dtype"
            )


def _sums(parameter: Tensor) -> Tensor:
    values = parameter.detach()
    return torch.stack(
        [values.sum(dtype=torch.float64), torch.linalg.vector_norm(values, dtype=torch.float64)]
    )


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(flat.numel() // SAMPLE, 1)].clone()


def _same(first: Tensor, second: Tensor) -> bool:
    # Bytes, so that a NaN which stays one counts as unmoved.
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def _listed(names: list[str] | Mapping[str, object]) -> str:
    shown = ", ".join(list(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

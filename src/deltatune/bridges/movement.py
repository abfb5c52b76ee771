"""Has every tensor moved that trains, and none that does not?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from deltatune.bridges.checksum import checksums
from deltatune.errors import WorkError

__all__ = ["Movement"]


class Movement:
    """Remembers every parameter by a checksum of its bits, to compare them after some steps.

    A changed bit anywhere counts: a step may move only few entries (rows of an embedding), and what
    wrongly changes a frozen weight may touch but one.
    """

    def __init__(self, model: nn.Module, may_rest: Collection[str] = ()) -> None:
        """Remember every parameter of the model as it is.

        Args:
            model: before its first step.
            may_rest: names of trained parameters that may stay where they are.
        """
        parameters = dict(model.named_parameters())
        trained = {
            n: p
            for n, p in parameters.items()
            if p.requires_grad and p.numel() and n not in may_rest
        }
        frozen = {n: p for n, p in parameters.items() if not p.requires_grad}
        self._trained, self._frozen = checksums(trained), checksums(frozen)

    def check_trained(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Compare what trains with now.

        Args:
            model: after some steps.
            names: of those that must have moved; all if not given.

        Raises:
            WorkError: with the names of what should have moved and did not.
        """
        asked = {n: v for n, v in self._trained.items() if names is None or n in names}
        now = _now(model, asked)
        still = [name for name, value in asked.items() if now.get(name) == value]
        if still:
            raise WorkError(
                f"{_listed(still)} should train but did not move: nothing uses them, their "
                f"learning rate is 0, or their steps round to zero in their dtype"
            )

    def check_frozen(self, model: nn.Module) -> None:
        """Compare what is frozen with now.

        Raises:
            WorkError: with the names of what should have stayed and moved, or is gone.
        """
        now = _now(model, self._frozen)
        moved = [name for name, value in self._frozen.items() if now.get(name) != value]
        if moved:
            raise WorkError(
                f"{_listed(moved)} should be frozen but moved: keep frozen weights out of the "
                f"optimizer and change no base weight while an adapter trains on it"
            )


def _now(model: nn.Module, names: dict[str, int]) -> dict[str, int]:
    return checksums({n: p for n, p in model.named_parameters() if n in names})


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

"""The contract of an update: at which rate each parameter moves, and when it is live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from deltatune.sites import Sites

__all__ = ["Factor", "Group", "TrainedParameter", "Update"]


@dataclass(frozen=True, kw_only=True)
class TrainedParameter:
    """One trainable parameter, as an update rule sees it.

    Args:
        name: its name in the trained model, the key of `named_parameters()`.
        canonical: the name of the base parameter or module it acts on, without any adapter's own
            parts.
        role: of the place it acts on (`deltatune.sites.ROLES`).
        part_role: its role within its delta (`"down"`, `"up"`, `"values"`, `"magnitude"`), or
            `"weight"`/`"bias"`.
        layer: index of its layer from the input, or None outside the layers.
        number_of_layers: of the whole model.
        shape: its shape.
    """

    name: str
    canonical: str
    role: str
    part_role: str
    layer: int | None
    number_of_layers: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Factor:
    """What an update rule does to one parameter: multiplies its rate and its weight decay.

    Factors of several rules multiply.

    Args:
        learning_rate: factor, above 0.
        weight_decay: factor, from 0 up.
        label: names the group in the printed table.
        clipped_with: name of the set of gradients whose common norm is bounded; an empty string is
            the set of all that name none. A set neither shrinks nor spares another.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    label: str = ""
    clipped_with: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One optimizer group, by parameter names (never by objects: sharding replaces them)."""

    label: str
    names: tuple[str, ...]
    number_of_parameters: int
    learning_rate: float
    weight_decay: float
    clipped_with: str = ""


class Update(Protocol):
    """A rule for rates and rhythm; an instance is its own options."""

    @property
    def changes_who_trains(self) -> bool:
        """Whether `live` ever leaves parameters out."""
        ...

    def factors(self, parameters: Sequence[TrainedParameter], sites: Sites) -> Mapping[str, Factor]:
        """Return parameter name -> factor; a name left out has factor 1."""
        ...

    def live(
        self, step: int, parameters: Sequence[TrainedParameter], *, steps: int
    ) -> frozenset[str] | None:
        """Return the names that train in one optimizer step, or None for all.

        Args:
            step: optimizer steps done before it, from 0.
            parameters: all that may ever train.
            steps: optimizer steps of the whole run.
        """
        ...

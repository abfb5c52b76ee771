"""Names of places: the role and the rows of every projection of any architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from deltatune.part import Rows, Whole

__all__ = ["ROLES", "Site", "Sites", "of"]

ROLES = (
    "query", "key", "value", "output", "gate", "up", "down",
    "embedding", "norm", "head", "other",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place of a model: a weight, or the rows of a fused one that play one role.

    Args:
        name: unique; the module's path, and `:role` behind it where the weight is fused.
        module: path of the module, in the model without any adapter.
        weight: name of its weight parameter, `module + ".weight"`.
        bias: name of its bias parameter, or None.
        role: one of `ROLES`.
        part: `Whole()`, or the `Rows` of a fused weight (counted on the output side).
        layer: index of its layer from the input, None outside the layers.
        out_features: outputs of this place (of its rows, if fused).
        in_features: inputs.
        transposed: whether the weight is stored `(in, out)`, as by Conv1D.
    """

    name: str
    module: str
    weight: str
    bias: str | None
    role: str
    part: Whole | Rows
    layer: int | None
    out_features: int
    in_features: int
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Sites(Mapping[str, Site]):
    """Every place of one model, by name.

    Args:
        places: name -> site, in the order of the module graph.
        model_type: of the configuration.
        number_of_layers: of all stacks together (encoder and decoder).
        tied: weight name -> the other names of the same tensor.
    """

    places: Mapping[str, Site]
    model_type: str
    number_of_layers: int
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Site:
        return self.places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def with_roles(self, *roles: str) -> tuple[Site, ...]:
        """Return the sites of the given roles, in model order; an unknown role is an error."""
        raise NotImplementedError

    def at_weight(self, weight: str) -> tuple[Site, ...]:
        """Return the sites of one weight: one, or several where it is fused."""
        raise NotImplementedError

    def of_parameter(self, name: str) -> Site | None:
        """Return the site that a parameter of the adapter-free model belongs to (its weight or bias)."""
        raise NotImplementedError


def of(model: nn.Module, *, roles: Mapping[str, str] | None = None) -> Sites:
    """Resolve every place of a model from its module graph and its configuration."""
    raise NotImplementedError

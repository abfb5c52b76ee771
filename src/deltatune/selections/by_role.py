"""Select whole projections by what they are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from deltatune.errors import InputError, unknown_name
from deltatune.part import Selection
from deltatune.parts import declare
from deltatune.selections.layers import check_layers, in_layers
from deltatune.sites import ROLES, Sites, join

__all__ = ["ByRole"]


@declare("selections", "by_role")
@dataclass(frozen=True, kw_only=True)
class ByRole:
    """Every projection that plays one of the given roles; of a fused weight, the rows that do.

    Args:
        roles: of `deltatune.sites.ROLES`; the query and the value by default, as EfficientFT does.
        layers: numbers of layers from the input, from 0 (a decoder's count on from the encoder's);
            empty for all places, also those outside the layers.
        allow_partial: whether it may cover only some places of a role.
        allow_tied: whether it may change a weight that acts in two places.
        allow_absent: whether a role that the model does not have is passed over, as the gate is in
            BERT and GPT-2; one of the roles at least must be there.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    changes_who_trains: ClassVar[bool] = False

    roles: tuple[str, ...] = ("query", "value")
    layers: tuple[int, ...] = ()
    allow_partial: bool = False
    allow_tied: bool = False
    allow_absent: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.roles, str):
            raise InputError(f"roles={self.roles!r} is not allowed: give a list, [{self.roles!r}]")
        for role in self.roles:
            if role not in ROLES:
                raise unknown_name("role", role, ROLES)
        if not self.roles or len(set(self.roles)) != len(self.roles):
            raise InputError(
                f"roles={list(self.roles)} is not allowed: give at least one, each once"
            )
        check_layers(self.layers)

    def __call__(
        self,
        model: nn.Module,
        sites: Sites,
        *,
        statistics: Any = None,
        generator: torch.Generator | None = None,
        previous: Selection | None = None,
    ) -> Selection:
        """Return weight name -> `Whole`, or the `Rows` of the roles in a fused weight.

        Raises:
            InputError: the model has no place of a role, there or at all.
        """
        found = in_layers(sites, sites.with_roles(*self.roles), self.layers)
        for role in () if found and self.allow_absent else self.roles:
            if not any(site.role == role for site in found):
                present = {site.role for site in in_layers(sites, sites.values(), self.layers)}
                raise unknown_name(f"in this {sites.model_type} model role", role, present)
        return join(sites, found)

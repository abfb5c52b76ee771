"""The contract of a selection: where a change may live."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from deltatune.part import Selection
from deltatune.sites import Sites

__all__ = ["Selector"]


class Selector(Protocol):
    """Chooses the parts of weights that may change; an instance is its own options.

    Attributes:
        needs: names of statistics wanted before it can choose.
        changes_who_trains: whether it chooses again during training (then DDP needs
            `find_unused_parameters`).
    """

    needs: ClassVar[frozenset[str]]
    changes_who_trains: ClassVar[bool]

    def __call__(
        self,
        model: nn.Module,
        sites: Sites,
        *,
        statistics: Any = None,
        generator: torch.Generator | None = None,
        previous: Selection | None = None,
    ) -> Selection:
        """Return weight name -> part; every name is a weight of `sites`."""
        ...

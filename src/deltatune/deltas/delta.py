"""The contract of a delta: a weight in, its change out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltatune.errors import InputError, NotComposable
from deltatune.part import Entries, Part, Whole

__all__ = ["ActingFactors", "Delta"]

_CHANGES: dict[type[Any], str] = {Whole: "whole weights", Entries: "single entries"}
_FIXES: dict[type[Any], str] = {
    Whole: "use the delta entries, or a sum of both",
    Entries: 'choose entries, as selection explicit does with weights={NAME: {"entries": [...]}}',
}


class ActingFactors(NamedTuple):
    """Thin factors through which a delta acts on activations: `scale * up @ down`.

    Args:
        up: `(out, rank)`, at least float32.
        down: `(rank, in)`, at least float32.
        scale: of the product; apart from the factors, so that parameters are kept as they are.
        dropout: probability with which an input of `down` is dropped in this pass, in [0, 1).
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0
    dropout: float = 0.0


class Delta(nn.Module, ABC):
    """The change of one weight (or of some rows of one), parameterised.

    A subclass declares `Options` (a frozen, keyword-only dataclass), sets up its parameters in
    `__init__`, and gives `delta_weight`; it overrides `delta_output` when the change can act on
    activations without forming its dense weight. `weight` is always in `(out, in)` orientation and
    already cut down to the rows and columns that may change, so a delta never knows of fused or
    transposed storage, nor of selected rows and columns.

    Trainable values are `nn.Parameter`s; indices and masks are buffers (integer optimizer state
    does not survive a resume). At the start the change is zero unless the subclass says otherwise.

    Attributes:
        Options: the dataclass of options.
        needs: names of statistics wanted at creation.
        roles: own parameter -> role, for update rules that treat them apart (`"down"`, `"up"`).
        acts_on: the kinds of part it can change: `Whole`, `Entries`, or both.
        is_mergeable: whether the change can be folded into the base.
        reads_weight: whether the change depends on the values of the base weight; if not, the
            `weight` given to its methods has the right shape, dtype and device but any values.
        has_start: whether `start` sets values that an adapter read from files gets from there.
    """

    Options: ClassVar[type[Any]]
    needs: ClassVar[frozenset[str]] = frozenset()
    roles: ClassVar[dict[str, str]] = {}
    acts_on: ClassVar[tuple[type[Any], ...]] = (Whole,)
    is_mergeable: bool = True
    reads_weight: bool = True
    has_start: bool = False

    def __init__(
        self,
        options: Any,
        weight: Tensor,
        site: Any,
        *,
        part: Part | None = None,
        statistics: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Set up the parameters.

        Args:
            options: an instance of `Options`.
            weight: the base weight of the place, `(out, in)`, cut down to what may change.
            site: the place (`deltatune.sites.Site`); its name goes into messages.
            part: `Whole()` if not given, or the `Entries` of `weight` that may change.
            statistics: what `needs` asked for.
            generator: source of random starts, seeded from (seed, site name).

        Raises:
            InputError: see `check`.
        """
        super().__init__()
        self.options = options
        self.site_name = str(getattr(site, "name", site))
        self.part = part if part is not None else Whole()
        self.out_features, self.in_features = weight.shape
        self.check(options, self.out_features, self.in_features, self.part, self.site_name)

    @classmethod
    def check(
        cls, options: Any, out_features: int, in_features: int, part: Part, site_name: str
    ) -> None:
        """Refuse, before any model is touched, a place that this delta cannot change.

        Args:
            options: an instance of `Options`.
            out_features: rows that may change.
            in_features: columns that may change.
            part: `Whole()` or `Entries` within these rows and columns.
            site_name: of the place, for the message.

        Raises:
            NotComposable: the delta cannot act on this kind of part.
            InputError: options that do not fit the shape.
        """
        if isinstance(part, cls.acts_on):
            return
        if type(part) not in _CHANGES:
            raise InputError(
                f"{type(part).__name__} of {site_name} given to a delta: cut the weight to them "
                f"first"
            )
        own = cls.acts_on[0]
        raise NotComposable(
            f"the delta {type(options).__name__} changes {_CHANGES[own]}, but the selection gives "
            f"{_CHANGES[type(part)]} of {site_name}: {_FIXES[own]}"
        )

    @classmethod
    def needed(cls, options: Any) -> frozenset[str]:
        """Return the names of the statistics that these options want: `needs`, or fewer."""
        return cls.needs

    def start(self, weight: Tensor, statistics: Any = None) -> None:
        """Set what the start of training reads off the base; not called before loading.

        Args:
            weight: as in `__init__`.
            statistics: what `needs` asked for.
        """

    @abstractmethod
    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the change, `(out, in)` float32, differentiable in the parameters."""

    def delta_output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the change of the output, `(..., in) -> (..., out)`, in the dtype of `inputs`."""
        return F.linear(inputs, self.delta_weight(weight).to(inputs.dtype))

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """Return the change of the bias, `(out,)` float32, or None when it has none."""
        return None

    def low_rank_factors(self) -> tuple[Tensor, Tensor] | None:
        """Return `(up (out, rank), down (rank, in))` whose product is `delta_weight`, if any."""
        return None

    def figures(self) -> Mapping[str, Any]:
        """Return what a run records of this delta after training, as plain values for JSON."""
        return {}

    def acting_factors(self) -> ActingFactors | None:
        """Return factors that do all that `delta_output` does now, or None.

        A layer may then fold their products into its own (see `bridges/peft_factored.py`).
        """
        return None

    @staticmethod
    @abstractmethod
    def number_of_parameters(
        options: Any, out_features: int, in_features: int, part: Part | None = None
    ) -> int:
        """Return how many scalars the change of one `(out, in)` weight trains."""

"""The contract of a delta: a weight in, its change out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltatune.part import Part, Whole

__all__ = ["Delta"]


class Delta(nn.Module):
    """The change of one weight (or of some rows of one), parameterised.

    A subclass declares `Options` (a frozen, keyword-only dataclass), sets up its parameters in
    `__init__`, and gives `delta_weight`; it overrides `delta_output` when the change can act on
    activations without forming its dense weight. `weight` is always in `(out, in)` orientation and
    already restricted to the site's rows, so a delta never knows of fused or transposed storage.

    Trainable values are `nn.Parameter`s; indices and masks are buffers (integer optimizer state does
    not survive a resume). At the start the change is zero unless the subclass says otherwise.

    Attributes:
        Options: the dataclass of options.
        needs: names of statistics wanted at creation.
        roles: own parameter -> role, for update rules that treat them apart (`"down"`, `"up"`).
        is_mergeable: whether the change can be folded into the base.
    """

    Options: ClassVar[type[Any]]
    needs: ClassVar[frozenset[str]] = frozenset()
    roles: ClassVar[dict[str, str]] = {}
    is_mergeable: ClassVar[bool] = True

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
            weight: the base weight of the place, `(out, in)`.
            site: the place (`deltatune.sites.Site`); its name goes into messages.
            part: which part of `weight` may change; the whole of it if not given. Rows of a fused
                projection are cut out before, so `Rows` here counts within the site.
            statistics: what `needs` asked for.
            generator: source of random starts, seeded from (seed, site name).
        """
        super().__init__()
        self.options = options
        self.site_name = str(getattr(site, "name", site))
        self.part = part if part is not None else Whole()
        self.out_features, self.in_features = weight.shape

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the change, `(out, in)` float32, differentiable in the parameters."""
        raise NotImplementedError(f"{type(self).__name__} gives no delta_weight")

    def delta_output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the change of the output, `(..., in) -> (..., out)`, in the dtype of `inputs`."""
        return F.linear(inputs, self.delta_weight(weight).to(inputs.dtype))

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """Return the change of the bias, `(out,)`, or None when it has none."""
        return None

    def low_rank_factors(self) -> tuple[Tensor, Tensor] | None:
        """Return `(up (out, rank), down (rank, in))` with `delta_weight == up @ down` exactly, if there are any."""
        return None

    @staticmethod
    def number_of_parameters(options: Any, out_features: int, in_features: int) -> int:
        """Return how many scalars the change of one `(out, in)` weight trains."""
        raise NotImplementedError

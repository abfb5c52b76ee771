"""Entries: the change of single, chosen entries of a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.deltas.delta import Delta
from deltatune.errors import InputError
from deltatune.part import Columns, Entries, Part, Rows
from deltatune.parts import Source, declare

__all__ = ["EntriesDelta", "SparseEntries"]

# A gathered entry costs one scattered read and write per token; a dense one a share of a fast
# matrix product. On a CPU and on a GPU the gathered way wins below about one entry in 64.
DENSE_FROM_SHARE = 1 / 64
CHUNK_ELEMENTS = 1 << 22  # tokens x entries held at a time


@dataclass(frozen=True, kw_only=True)
class SparseEntries:
    """Options of the entries delta: none; the selection says which entries."""


@declare(
    "deltas",
    "entries",
    options=SparseEntries,
    source=Source(
        authors="Guo, Rush and Kim",
        year=2021,
        title="Parameter-Efficient Transfer Learning with Diff Pruning",
        arxiv="2012.07463",
        where="section 2, a sparse difference vector; here its places are given, not learnt",
    ),
)
class EntriesDelta(Delta):
    """Add `values[i]` to the entry `indices[i]` of the weight; all values are zero at the start.

    The values are one float parameter `(k,)`, the places one int64 buffer `(k,)`: as optimizer
    state, or in the weight's own dtype, indices would not survive a resume.
    """

    Options: ClassVar[type[Any]] = SparseEntries
    roles: ClassVar[dict[str, str]] = {"values": "values"}
    indices: Tensor

    def __init__(
        self,
        options: SparseEntries,
        weight: Tensor,
        site: Any,
        *,
        part: Part | None = None,
        statistics: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Keep the places, sorted, and start all values at zero.

        Raises:
            InputError: the selection gives no part, or places outside the weight.
        """
        super().__init__(options, weight, site, part=part, statistics=statistics, generator=generator)
        indices = self._flat(part)
        if indices.numel() and int(indices.max()) >= weight.numel():
            raise InputError(
                f"entry {int(indices.max())} is outside {self.site_name}: give flat indices from 0 to "
                f"{weight.numel() - 1}"
            )
        self.register_buffer("indices", indices.sort().values.to(weight.device))
        self.values = nn.Parameter(torch.zeros(indices.numel(), device=weight.device))

    def _flat(self, part: Part | None) -> Tensor:
        if isinstance(part, Entries):
            return part.indices
        every = torch.arange(self.out_features * self.in_features).view(
            self.out_features, self.in_features
        )
        if isinstance(part, Rows):
            return every[part.indices].reshape(-1)
        if isinstance(part, Columns):
            return every[:, part.indices].reshape(-1)
        raise InputError(
            f"entries needs to know which entries of {self.site_name}: use the selection 'explicit' "
            f"with entries, rows or columns, or another selection that chooses entries"
        )

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the change with zeros everywhere else, `(out, in)` float32."""
        flat = self.values.new_zeros(self.out_features * self.in_features, dtype=torch.float32)
        scattered = flat.scatter(0, self.indices, self.values.float())
        return scattered.view(self.out_features, self.in_features)

    def delta_output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Apply few entries to the activations directly; many as a dense change."""
        if self.indices.numel() >= DENSE_FROM_SHARE * self.out_features * self.in_features:
            return super().delta_output(inputs, weight)
        flat = inputs.reshape(-1, self.in_features)  # (tokens, in)
        rows, columns = self.indices // self.in_features, self.indices % self.in_features
        values = self.values.to(inputs.dtype)
        change = _SparseProduct.apply(flat, values, rows, columns, self.out_features)
        shaped: Tensor = change.view(*inputs.shape[:-1], self.out_features)
        return shaped

    @staticmethod
    def number_of_parameters(options: SparseEntries, out_features: int, in_features: int) -> int:
        """Return how many entries a whole place has; a part trains as many as it names."""
        return out_features * in_features


class _SparseProduct(torch.autograd.Function):
    """`inputs @ S.T` for a sparse `S (out, in)`, without a dense S and without `(tokens, k)` kept."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: Tensor, values: Tensor, rows: Tensor, columns: Tensor, out_features: int
    ) -> Tensor:
        ctx.save_for_backward(inputs, values, rows, columns)
        output = inputs.new_zeros(inputs.shape[0], out_features)
        for chunk in _chunks(inputs.shape[0], values.numel()):
            output.index_add_(1, rows[chunk], inputs[:, columns[chunk]] * values[chunk])
        return output

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        inputs, values, rows, columns = ctx.saved_tensors
        wants_inputs, wants_values = ctx.needs_input_grad[:2]
        to_inputs = torch.zeros_like(inputs) if wants_inputs else None
        to_values = torch.empty_like(values) if wants_values else None
        for chunk in _chunks(inputs.shape[0], values.numel()):
            arriving = gradient[:, rows[chunk]]  # (tokens, chunk)
            if to_inputs is not None:
                to_inputs.index_add_(1, columns[chunk], arriving * values[chunk])
            if to_values is not None:
                products = (arriving * inputs[:, columns[chunk]]).sum(0, dtype=torch.float32)
                to_values[chunk] = products.to(values.dtype)
        return to_inputs, to_values, None, None, None


def _chunks(tokens: int, entries: int) -> list[slice]:
    size = max(CHUNK_ELEMENTS // max(tokens, 1), 1)
    return [slice(start, start + size) for start in range(0, entries, size)]

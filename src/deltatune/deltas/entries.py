"""Entries: the change lives in single chosen entries of the weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deltatune.deltas.delta import Delta
from deltatune.part import Entries, Part
from deltatune.parts import Source, declare

__all__ = ["EntryValues", "EntryValuesDelta"]


@dataclass(frozen=True, kw_only=True)
class EntryValues:
    """Options of the entries delta: none, since the selection says which entries and how many."""


@declare(
    "deltas",
    "entries",
    options=EntryValues,
    source=Source(
        authors="Guo et al.",
        year=2021,
        title="Parameter-Efficient Transfer Learning with Diff Pruning",
        arxiv="2012.07463",
        where="section 2, the change at a fixed mask",
    ),
)
class EntryValuesDelta(Delta):
    """Add one trained value to each chosen entry of the weight; all values are zero at the start.

    delta_weight[i, j] = values[n] where indices[n] = i * in + j, and 0 elsewhere. The choice is a
    buffer, `indices (k,)` int64 into the `(out, in)` form, and is saved beside the values.
    """

    Options: ClassVar[type[Any]] = EntryValues
    roles: ClassVar[dict[str, str]] = {"values": "values"}
    acts_on: ClassVar[tuple[type[Any], ...]] = (Entries,)
    reads_weight = False
    indices: Tensor

    def __init__(
        self,
        options: EntryValues,
        weight: Tensor,
        site: Any,
        *,
        part: Part | None = None,
        statistics: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take the chosen entries; see `Delta`.

        Raises:
            NotComposable: `part` gives no entries.
        """
        super().__init__(
            options, weight, site, part=part, statistics=statistics, generator=generator
        )
        assert isinstance(self.part, Entries)  # `check` saw to it
        indices = self.part.indices.to(weight.device)
        self.register_buffer("indices", indices)
        self.values = nn.Parameter(torch.zeros(indices.numel(), device=weight.device))  # (k,)

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the values at their entries, `(out, in)` float32."""
        wide = torch.promote_types(self.values.dtype, torch.float32)
        return _dense(self.values.to(wide), self.indices, self.out_features, self.in_features)

    def delta_output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the change of the output; keeps `inputs` for the backward and nothing else.

        Few entries are gathered, `k` multiply-adds for each token; for many the dense change is
        formed for as long as one product takes, and formed again in the backward.
        """
        change: Tensor = _LinearOfEntries.apply(  # type: ignore[no-untyped-call]
            inputs, self.values, self.indices, self.out_features
        )
        return change

    @staticmethod
    def number_of_parameters(
        options: EntryValues, out_features: int, in_features: int, part: Part | None = None
    ) -> int:
        """Return k, the number of chosen entries (all of them where no choice is given)."""
        return part.indices.numel() if isinstance(part, Entries) else out_features * in_features


@dataclass(frozen=True)
class _Costs:
    """What decides between gathering and the dense product.

    Args:
        gathered: time of one gathered multiply-add over that of one in a dense product.
        chunk: gathered values held at once.
    """

    gathered: int
    chunk: int


# CPU: measured with one thread at widths 512 to 2048 (60 to 120), chunks that stay in the cache.
# Others: 16 bytes moved for each gathered value, against the dense speed of tensor cores.
_CPU = _Costs(gathered=96, chunk=2**18)
_ACCELERATOR = _Costs(gathered=1024, chunk=2**24)


def _costs(device: torch.device) -> _Costs:
    return _CPU if device.type == "cpu" else _ACCELERATOR


def _dense(values: Tensor, indices: Tensor, out_features: int, in_features: int) -> Tensor:
    flat = values.new_zeros(out_features * in_features).index_add(0, indices, values)
    return flat.view(out_features, in_features)


class _LinearOfEntries(torch.autograd.Function):
    """linear(inputs, dense change), with neither the dense change nor gathered inputs kept."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, values: Tensor, indices: Tensor, out_features: int
    ) -> Tensor:
        in_features = inputs.shape[-1]
        ctx.save_for_backward(inputs, values, indices)
        ctx.out_features = out_features
        cost = indices.numel() * _costs(inputs.device).gathered
        ctx.gathers = cost < out_features * in_features
        if not ctx.gathers:
            dense = _dense(values, indices, out_features, in_features)
            return F.linear(inputs, dense.to(inputs.dtype))
        tokens = _columns(inputs)  # (in, tokens)
        output = _product(
            tokens, values, indices % in_features, indices // in_features, out_features
        )
        return output.T.reshape(*inputs.shape[:-1], out_features).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, values, indices = ctx.saved_tensors
        backward = _backward_gathered if ctx.gathers else _backward_dense
        of_inputs, of_values = backward(gradient, inputs, values, indices, ctx.needs_input_grad)
        return of_inputs, of_values, None, None


def _backward_dense(
    gradient: Tensor, inputs: Tensor, values: Tensor, indices: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    of_inputs = of_values = None
    if needed[0]:
        dense = _dense(values, indices, gradient.shape[-1], inputs.shape[-1]).to(gradient.dtype)
        of_inputs = (gradient @ dense).to(inputs.dtype)
    if needed[1]:
        # Under autocast the gradient is narrower than the inputs.
        whole = gradient.flatten(0, -2).T @ inputs.flatten(0, -2).to(gradient.dtype)  # (out, in)
        of_values = whole.flatten()[indices].to(values.dtype)
    return of_inputs, of_values


def _backward_gathered(
    gradient: Tensor, inputs: Tensor, values: Tensor, indices: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    in_features = inputs.shape[-1]
    rows, columns = indices // in_features, indices % in_features
    gradients = _columns(gradient)  # (out, tokens)
    of_inputs = of_values = None
    if needed[0]:
        product = _product(gradients, values, rows, columns, in_features)  # (in, tokens)
        of_inputs = product.T.reshape(inputs.shape).to(inputs.dtype)
    if needed[1]:
        tokens = _columns(inputs)  # (in, tokens)
        pieces = [
            (gradients[rows[piece]] * tokens[columns[piece]]).sum(1)
            for piece in _pieces(indices.numel(), tokens)
        ]
        of_values = torch.cat(pieces).to(values.dtype)
    return of_inputs, of_values


def _columns(activations: Tensor) -> Tensor:
    """Return `(features, tokens)`, at least float32: one entry then reads one stretch of memory."""
    wide = torch.promote_types(activations.dtype, torch.float32)
    return activations.flatten(0, -2).T.to(wide, copy=True, memory_format=torch.contiguous_format)


def _pieces(number: int, tokens: Tensor) -> Iterator[slice]:
    step = max(1, _costs(tokens.device).chunk // max(1, tokens.shape[1]))
    return (slice(start, start + step) for start in range(0, number, step))


def _product(
    tokens: Tensor, values: Tensor, read: Tensor, written: Tensor, features: int
) -> Tensor:
    """Return `(features, tokens)`: each value times the row it reads, added where it writes."""
    product = tokens.new_zeros(features, tokens.shape[1])
    for piece in _pieces(values.numel(), tokens):
        scaled = tokens[read[piece]] * values[piece].to(tokens.dtype)[:, None]
        product.index_add_(0, written[piece], scaled)
    return product

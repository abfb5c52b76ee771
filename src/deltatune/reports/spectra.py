"""The spectra of every weight of a delta, one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.errors import InputError
from deltatune.matrix_spectra import (
    check_change,
    cosine_spectrum,
    log_density,
    squared_singular_values,
)
from deltatune.reports.captured_energy import curve_ranks, energy_rows
from deltatune.reports.gaussianity import gaussianity_of
from deltatune.reports.report import Row
from deltatune.weight_delta import WeightDelta

__all__ = ["LeftOut", "WeightSpectrum", "spectra"]

LARGEST_CELLS = 2**26  # 67 million: all of Llama-3-8B but its embedding and head


@dataclass(frozen=True, kw_only=True)
class WeightSpectrum:
    """What the change of one weight looks like.

    Args:
        name: of the base weight.
        shape: as stored.
        row: `norm`, `to_weight_norm_ratio` (where the base is known), and the figures of the
            reports `captured_energy` and `gaussianity`.
        curve: the figures of `captured_energy` for ranks from 1 to all.
        density: log10 of the cosine spectrum's energy over that of a flat one, of at most 64 x 64
            bins; the first axis is the first of the stored weight, low frequencies come first.
    """

    name: str
    shape: tuple[int, int]
    row: Row
    curve: tuple[Row, ...]
    density: Tensor


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A change that has no spectrum here, and why."""

    name: str
    reason: str


@torch.no_grad()
def spectra(
    delta: WeightDelta,
    base_weights: Mapping[str, Tensor] | None = None,
    *,
    rank: int = 8,
    draws: int = 1000,
    seed: int = 0,
    bins: int = 64,
    largest_cells: int = LARGEST_CELLS,
) -> Iterator[WeightSpectrum | LeftOut]:
    """Yield what each weight's change looks like, in the order of the delta.

    A weight takes time of order out * in * min(out, in), for its singular values: on one core a
    third of a second for 1,024 x 1,024 and 8 seconds for 4,096 x 4,096. They are found where the
    delta lies, so on an accelerator if it is there. The 1,000 Gaussian matrices of the test are
    drawn once for each shape and cost one second more at the larger of the two.

    Args:
        delta: of any origin.
        base_weights: name -> weight of the base, for the size of a change beside its weight.
        rank: of the rows; a weight with a shorter side is described at that side's length.
        draws: Gaussian matrices of the test.
        seed: of the draws.
        bins: of an axis of a heatmap at most.
        largest_cells: weights with more entries are left out, which bounds time and memory.

    Raises:
        InputError: an option that is not allowed, or a change that is not finite, with its name.
    """
    for name, value in (("rank", rank), ("bins", bins), ("largest_cells", largest_cells)):
        if value < 1:
            raise InputError(f"{name}={value} is not allowed: give an integer from 1")
    for name in delta:
        reason = _unfit(delta.shape(name), largest_cells)
        change = None if reason else delta[name]
        if change is None or not bool(change.any()):
            yield LeftOut(name=name, reason=reason or "unchanged")
            continue
        weight = None if base_weights is None else base_weights.get(name)
        yield _described(name, change, weight, rank=rank, draws=draws, seed=seed, bins=bins)


def _unfit(shape: tuple[int, ...], largest_cells: int) -> str:
    if len(shape) != 2:
        return "a vector" if len(shape) == 1 else f"a tensor of {len(shape)} axes"
    if shape[0] * shape[1] > largest_cells:
        return f"more than {largest_cells:,} entries"
    return "" if min(shape) > 1 else "a single row or column"


def _described(
    name: str,
    change: Tensor,
    weight: Tensor | None,
    *,
    rank: int,
    draws: int,
    seed: int,
    bins: int,
) -> WeightSpectrum:
    try:
        check_change(change)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    shape = (change.shape[0], change.shape[1])
    values, spectrum = squared_singular_values(change), cosine_spectrum(change)
    own = min(rank, *shape)
    described, *curve = energy_rows(values, spectrum, [own, *curve_ranks(shape)])
    norm = float(values.sum().sqrt())
    size: dict[str, float] = {"norm": norm}
    if weight is not None:
        size["to_weight_norm_ratio"] = norm / max(float(weight.detach().float().norm()), 1e-30)
    return WeightSpectrum(
        name=name,
        shape=shape,
        row={
            **size,
            **described,
            **gaussianity_of(change, values, draws=draws, seed=seed),
        },
        curve=tuple(curve),
        density=log_density(spectrum, bins=bins),
    )

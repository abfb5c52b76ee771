"""Options of the cosine delta."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from deltatune.errors import InputError

__all__ = ["CosineSpectrum"]

Way = Literal["auto", "factored", "transform", "sparse", "dense", "fast"]


@dataclass(frozen=True, kw_only=True)
class CosineSpectrum:
    """Options of the cosine delta.

    Args:
        coefficients: B of each weight: a whole number from 1, or a share of its entries below 1.
        scale: alpha, a factor above 0; the norm of the change is alpha times the coefficients'.
        basis: of both axes: `cosine`, `hadamard`, `rotation`, `fourier` (real coefficients, of
            which FourierFT keeps the real part of the sum) or `fourier_imaginary` (imaginary ones).
        locations: where coefficients begin: `uniform` draws each by itself, `distinct` never two in
            one cell, `low_frequency` takes the first cells, `gradient` those with the largest
            coefficients of the weight's gradient on `batches` of examples.
        learns_locations: whether locations train; else they stay.
        location_unit: of the trained numbers: `cell`, so that one learning rate means the same on
            axes of any length, or `share` of the axis, as published.
        location_gradient: `clean`, which gives none at the border of the spectrum, where the
            difference has one side only; or `authors`, see `LocationRule`.
        values: coefficients at the start: `zero`, or `normal` (then the change is not zero).
        way: how products are computed (`deltas/spectral_products.py`); `auto` takes the cheapest
            for each number of tokens. `costs.json` of a run says which, in `way_by_tokens`.
        dropout: probability that an input is dropped while training, in [0, 1).
        batches: of examples for `gradient`, from 1.
    """

    coefficients: float = 1000
    scale: float = 1.0
    basis: Literal["cosine", "hadamard", "rotation", "fourier", "fourier_imaginary"] = "cosine"
    locations: Literal["uniform", "distinct", "low_frequency", "gradient"] = "uniform"
    learns_locations: bool = True
    location_unit: Literal["cell", "share"] = "cell"
    location_gradient: Literal["clean", "authors"] = "clean"
    values: Literal["zero", "normal"] = "zero"
    way: Way = "auto"
    dropout: float = 0.0
    batches: int = 8

    def __post_init__(self) -> None:
        whole = float(self.coefficients).is_integer()
        if not (self.coefficients > 0 and (whole or self.coefficients < 1)):
            raise InputError(
                f"coefficients={self.coefficients:g} is not allowed: give a whole number from 1, "
                f"or a share of the entries between 0 and 1"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"scale={self.scale} is not allowed: give a finite number above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} is not allowed: give a probability in [0, 1)")
        if self.batches < 1:
            raise InputError(f"batches={self.batches} is not allowed: give an integer from 1")

    @classmethod
    def example(cls) -> CosineSpectrum:
        """Return few coefficients, which fit most weights."""
        return cls(coefficients=6)

    @property
    def needs(self) -> frozenset[str]:
        """The statistic that the locations are chosen by."""
        return frozenset({"weight_gradient"} if self.locations == "gradient" else ())

    def number(self, out_features: int, in_features: int) -> int:
        """Return B of a weight `(out, in)`; a share gives at least 1."""
        if self.coefficients >= 1:
            return int(self.coefficients)
        return max(1, round(self.coefficients * out_features * in_features))

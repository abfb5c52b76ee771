"""What the page, the figures and the JSON file of a delta's spectra all show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.reports.captured_energy import curve_ranks, gaussian_captured_energy
from deltatune.reports.report import Row
from deltatune.reports.spectra import LeftOut, WeightSpectrum

__all__ = ["SpectrumReport", "collected"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SpectrumReport:
    """The spectra of a delta, small enough to be held whole.

    Args:
        title: of the page.
        options: what the figures were made with.
        weights: in the order of the delta.
        left_out: reason -> names of the weights without a spectrum.
    """

    title: str
    options: Mapping[str, int]
    weights: Sequence[WeightSpectrum]
    left_out: Mapping[str, Sequence[str]]

    def largest_first(self) -> list[WeightSpectrum]:
        """Return the weights whose change has the largest norm first."""
        return sorted(self.weights, key=lambda one: -float(one.row["norm"]))

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "format": FORMAT,
            "title": self.title,
            "options": dict(self.options),
            "weights": [_plain(one) for one in self.weights],
            "left_out": {reason: list(names) for reason, names in self.left_out.items()},
        }


def collected(
    found: Iterable[WeightSpectrum | LeftOut], *, title: str, options: Mapping[str, int]
) -> SpectrumReport:
    """Collect what `spectra` yields."""
    weights: list[WeightSpectrum] = []
    left_out: dict[str, list[str]] = {}
    for one in found:
        if isinstance(one, LeftOut):
            left_out.setdefault(one.reason, []).append(one.name)
        else:
            weights.append(one)
    return SpectrumReport(title=title, options=options, weights=weights, left_out=left_out)


def gaussian_curve(shape: tuple[int, int]) -> list[Row]:
    """Return the curve that a large matrix of iid Gaussian entries would have."""
    return [gaussian_captured_energy(shape, rank=rank) for rank in curve_ranks(shape)]


def _plain(one: WeightSpectrum) -> dict[str, Any]:
    return {
        "name": one.name,
        "shape": list(one.shape),
        "figures": dict(one.row),
        "curve": [dict(row) for row in one.curve],
        # Three digits are more than a colour can show, and keep the page small.
        "log10_density": [[round(value, 3) for value in line] for line in one.density.tolist()],
    }

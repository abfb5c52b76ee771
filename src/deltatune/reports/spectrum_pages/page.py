"""The spectra of a delta as one HTML file that asks for nothing from any network."""

from __future__ import annotations

import statistics
from typing import Any

from deltatune.comparison.reporting.page_files import rendered
from deltatune.comparison.reporting.page_tables import Cell, Heading, Table
from deltatune.comparison.reporting.units import number, p_value
from deltatune.reports.spectra import WeightSpectrum
from deltatune.reports.spectrum_pages.contents import SpectrumReport, gaussian_curve
from deltatune.reports.spectrum_pages.figures import LINES

__all__ = ["page"]

HEADINGS = {
    "norm": ("norm", "Frobenius norm of the change"),
    "to_weight_norm_ratio": ("over weight", "norm of the change over that of its base weight"),
    "rank": ("rank", "of the best approximation in the next columns"),
    "rank_energy_ratio": ("rank r", "share of the squared norm that the best rank r keeps"),
    "random_cells_energy_ratio": ("random cells", "share kept by as many random cells, expected"),
    "best_cells_energy_ratio": ("best cells", "share kept by as many of the largest cells"),
    "best_located_cells_energy_ratio": ("best, located", "the same, with locations counted"),
    "total_variation": ("distance", "total variation to the Marchenko-Pastur law"),
    "p_value": ("p", "of iid Gaussian entries; a small one rejects them"),
    "largest_to_edge_ratio": ("edge", "largest eigenvalue over the law's end; near 1 if iid"),
    "excess_kurtosis": ("kurtosis", "excess, of the entries; 0 if Gaussian"),
}


def page(report: SpectrumReport) -> str:
    """Return the page; every text of the delta is escaped."""
    return rendered(
        __package__,
        "spectra.html",
        ("tables.js", "looks.js", "spectra.js"),
        title=report.title,
        report=report,
        summary=_summary(report),
        table=_table(report),
        names=[one.name for one in report.largest_first()],
        charts=_charts(report),
    )


def _summary(report: SpectrumReport) -> str:
    if not report.weights:
        return "No weight of this delta has a spectrum."
    kept = [float(one.row["rank_energy_ratio"]) for one in report.weights]
    rejected = sum(float(one.row["p_value"]) < 0.05 for one in report.weights)
    return (
        f"{len(report.weights)} weights changed. Rank {report.options['rank']} keeps "
        f"{number(min(kept))} to {number(max(kept))} of a change's squared norm, "
        f"{number(statistics.median(kept))} in the middle. Singular values like those of iid "
        f"Gaussian entries are rejected (p < 0.05) for {rejected} of {len(report.weights)}."
    )


def _table(report: SpectrumReport) -> Table:
    shown = [name for name in HEADINGS if any(name in one.row for one in report.weights)]
    headings = [Heading("weight", "text"), Heading("shape")]
    headings += [
        Heading(HEADINGS[name][0], what=HEADINGS[name][1], begins="descending") for name in shown
    ]
    return Table("weights", headings, [_line(one, shown) for one in report.weights])


def _line(one: WeightSpectrum, shown: list[str]) -> list[Cell]:
    line = [Cell.of(one.name), Cell(" x ".join(map(str, one.shape)), one.shape[0] * one.shape[1])]
    for name in shown:
        value = float(one.row[name]) if name in one.row else None
        text = p_value(value) if name == "p_value" or value is None else number(value)
        line.append(Cell(str(one.row[name]) if name == "rank" else text, value))
    return line


def _charts(report: SpectrumReport) -> dict[str, Any]:
    """Return all that the page's script needs."""
    shapes = {one.shape for one in report.weights}
    return {
        "titles": list(LINES.values()),
        "weights": {
            one.name: {
                "shape": list(one.shape),
                "ranks": [row["rank"] for row in one.curve],
                "lines": _lines(one.curve),
                "density": [[round(value, 2) for value in line] for line in one.density.tolist()],
            }
            for one in report.weights
        },
        "gaussian": {_key(shape): _lines(gaussian_curve(shape)) for shape in sorted(shapes)},
    }


def _lines(curve: Any) -> list[list[float]]:
    return [[float(f"{float(row[name]):.4g}") for row in curve] for name in LINES]


def _key(shape: tuple[int, int]) -> str:
    return ",".join(map(str, shape))  # as JavaScript writes a list

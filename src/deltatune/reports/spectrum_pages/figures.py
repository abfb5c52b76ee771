"""The spectra of a delta as PNG and SVG, for papers."""

from __future__ import annotations

import math

import matplotlib as mpl
from matplotlib.figure import Figure

from deltatune.comparison.reporting.figures import COLOURS, STYLE
from deltatune.reports.spectra import WeightSpectrum
from deltatune.reports.spectrum_pages.contents import SpectrumReport

__all__ = ["LINES", "figures"]

MOST_PANELS = 12
PANELS_OF_A_LINE = 4
LONGEST_NAME = 30  # letters over a panel; the end of a name tells more than its beginning
# Figure of a curve -> what a reader calls it.
LINES = {
    "rank_energy_ratio": "rank r",
    "best_cells_energy_ratio": "best cells",
    "best_located_cells_energy_ratio": "best cells, locations counted",
    "random_cells_energy_ratio": "random cells",
}


def figures(report: SpectrumReport) -> dict[str, Figure]:
    """Return the figures by name of file; none where no weight has a spectrum."""
    if not report.weights:
        return {}
    with mpl.rc_context(STYLE):
        return {"spectra": _heatmaps(report), "captured_energy": _curves(report)}


def _heatmaps(report: SpectrumReport) -> Figure:
    """Draw the spectra of the largest changes under one scale of colours."""
    drawn = report.largest_first()[:MOST_PANELS]
    width = min(len(drawn), PANELS_OF_A_LINE)
    height = -(-len(drawn) // width)
    figure = Figure(figsize=(1.2 + 2.1 * width, 0.5 + 2.1 * height), layout="constrained")
    low = min(float(one.density.min()) for one in drawn)
    high = max(float(one.density.max()) for one in drawn)
    panels = []
    for place, one in enumerate(drawn):
        axes = figure.add_subplot(height, width, place + 1)
        extent = (0.0, float(one.shape[1]), float(one.shape[0]), 0.0)
        image = axes.imshow(
            one.density.numpy(), cmap="cividis", vmin=low, vmax=high, aspect="auto", extent=extent
        )
        axes.set_title(_short(one), size=7, parse_math=False)
        axes.tick_params(labelsize=6)
        panels.append(axes)
    figure.supxlabel("frequency along the second axis", size=8)
    figure.supylabel("frequency along the first axis", size=8)
    bar = figure.colorbar(image, ax=panels)
    bar.set_label("log10 of energy over a flat spectrum")
    return figure


def _curves(report: SpectrumReport) -> Figure:
    """Draw a line for every weight and way of storing, over what it stores."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    faint = max(0.08, 1 / math.sqrt(len(report.weights)))
    for colour, (name, title) in zip(COLOURS, LINES.items(), strict=False):
        for one in report.weights:
            sides = sum(one.shape) / math.prod(one.shape)
            stored = [float(row["rank"]) * sides for row in one.curve]
            kept = [float(row[name]) for row in one.curve]
            axes.plot(stored, kept, color=colour, alpha=faint, linewidth=1.2)
        axes.plot([], [], color=colour, label=title)
    axes.set_xscale("log")
    axes.set_xlim(right=1.0)
    axes.set_xlabel("numbers stored, as a share of the weight's entries: r (out + in) / (out in)")
    axes.set_ylabel("share of the squared norm kept")
    figure.legend(loc="outside lower center", frameon=False, ncols=len(LINES), fontsize=8)
    return figure


def _short(one: WeightSpectrum) -> str:
    name = one.name.removesuffix(".weight")
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"

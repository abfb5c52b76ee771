"""Write what the spectra of a delta look like: a page, figures, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from deltatune.comparison.reporting.figures import drawn
from deltatune.errors import InputError
from deltatune.exporting import trained_delta
from deltatune.files import write_bytes_atomically, write_json_atomically, write_text_atomically
from deltatune.reports.spectra import LARGEST_CELLS, spectra
from deltatune.reports.spectrum_pages.contents import collected
from deltatune.reports.spectrum_pages.figures import figures
from deltatune.reports.spectrum_pages.page import page
from deltatune.weight_delta import WeightDelta

__all__ = ["write_spectrum_report"]


def write_spectrum_report(
    source: WeightDelta | str | Path,
    folder: str | Path,
    *,
    base_weights: Mapping[str, Tensor] | None = None,
    title: str = "",
    rank: int = 8,
    draws: int = 1000,
    seed: int = 0,
    largest_cells: int = LARGEST_CELLS,
) -> list[Path]:
    """Write the spectra of a delta for readers and for programs, one weight in memory at a time.

    Args:
        source: a delta of any origin, or the folder of a finished run, which knows its base.
        folder: for the files; what stands there under the same names is replaced.
        base_weights: name -> weight of the base, if `source` is a delta and they are known.
        title: of the page; the folder of a run says it best itself.
        rank: of the table's figures; the curves show all.
        draws: Gaussian matrices of the test.
        seed: of the draws.
        largest_cells: weights with more entries are left out, and listed as such.

    Returns:
        What was written: `spectra.html`, `spectra.json`, and as PNG and SVG `spectra` and
        `captured_energy`, where there is something to draw.

    Raises:
        InputError: no finished run, a delta without changes, one that is not finite, an option
            that is not allowed, or base weights given beside a run.
        NotMergeable: the adapter of the run is no change of weights.
        OSError: a file could not be written; it is as it was.
    """
    delta, known = source, base_weights
    if not isinstance(delta, WeightDelta):
        if base_weights is not None:
            raise InputError(f"base_weights given beside the run {str(source)!r}: leave them out")
        title = title or f"Spectra of {Path(delta).name}"
        delta, known = trained_delta(delta)
    if not len(delta):
        raise InputError("the delta holds no changes: give one that does")
    found = spectra(delta, known, rank=rank, draws=draws, seed=seed, largest_cells=largest_cells)
    report = collected(
        found,
        title=title or "Spectra of a delta",
        options={"rank": rank, "draws": draws, "seed": seed, "largest_cells": largest_cells},
    )
    target = Path(folder)
    write_text_atomically(target / "spectra.html", page(report))
    write_json_atomically(target / "spectra.json", report.to_plain())
    written = [target / "spectra.html", target / "spectra.json"]
    for name, figure in figures(report).items():
        for kind in ("png", "svg"):
            written.append(target / f"{name}.{kind}")
            write_bytes_atomically(written[-1], drawn(figure, kind))
    return written

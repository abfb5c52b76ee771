"""Write the page, the tables and the figures beside `comparison.json`."""

from __future__ import annotations

from pathlib import Path

from deltatune.comparison.reporting.contents import read_comparison
from deltatune.comparison.reporting.figures import drawn, figures
from deltatune.comparison.reporting.page import page
from deltatune.comparison.reporting.tables import latex_table, recipes_csv, runs_csv
from deltatune.files import write_bytes_atomically, write_text_atomically

__all__ = ["write_reports"]


def write_reports(folder: Path) -> list[Path]:
    """Make everything for readers from `comparison.json` of a folder.

    Args:
        folder: of a comparison; what stood there under the same names is replaced.

    Returns:
        What was written: `comparison.html`, `.csv` and `.tex`, `runs.csv`, and as PNG and SVG those
        of `pareto`, `losses`, `intervals` and `heatmap` that there is something to draw for.

    Raises:
        InputError: there is no comparison in the folder, or it is of another format.
        OSError: a file could not be written; it is as it was.
    """
    comparison = read_comparison(folder)
    texts = {
        "comparison.html": page(comparison),
        "comparison.csv": recipes_csv(comparison),
        "runs.csv": runs_csv(comparison),
        "comparison.tex": latex_table(comparison),
    }
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    written = [folder / name for name in texts]
    for name, figure in figures(comparison).items():
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            write_bytes_atomically(path, drawn(figure, kind))
            written.append(path)
    return written

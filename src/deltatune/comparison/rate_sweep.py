"""The learning rates of EfficientFT by trial: a grid of eta and eta_V, or one eta_V with ratios."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltatune.comparison.evaluation import lower_is_better
from deltatune.data.loading import load
from deltatune.errors import Diverged, InputError
from deltatune.files import write_json_atomically, write_text_atomically
from deltatune.run import finetune
from deltatune.run_folder import RunFolder

__all__ = ["Cell", "Sweep", "rates_for_ratios", "sweep"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trial.

    Args:
        query_learning_rate: eta in the paper.
        value_learning_rate: eta_V in the paper.
        scores: metrics after training; empty for a diverged run.
        headline: name of the metric to look at, an empty string for a diverged run.
        diverged: what stopped the run, or an empty string.
    """

    query_learning_rate: float
    value_learning_rate: float
    scores: Mapping[str, float]
    headline: str
    diverged: str = ""

    @property
    def score(self) -> float | None:
        """The metric to look at; None for a diverged run."""
        return None if self.diverged else self.scores[self.headline]

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Cell:
        """Return the trial that `to_dict` gave; the ratio follows from the rates."""
        return cls(**{key: value for key, value in plain.items() if key != "ratio"})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the ratio of the two rates."""
        return {
            "query_learning_rate": self.query_learning_rate,
            "value_learning_rate": self.value_learning_rate,
            "ratio": self.value_learning_rate / self.query_learning_rate,
            "headline": self.headline,
            "scores": dict(self.scores),
            "diverged": self.diverged,
        }


@dataclass(frozen=True)
class Sweep:
    """Finished trials."""

    cells: tuple[Cell, ...]

    @property
    def best(self) -> Cell:
        """The trial with the best score; of equal ones the first.

        Raises:
            Diverged: every trial did.
        """
        finished = [cell for cell in self.cells if cell.score is not None]
        if not finished:
            raise Diverged("every pair of rates diverged: sweep lower value learning rates")
        sign = -1.0 if lower_is_better(finished[0].headline) else 1.0
        return max(finished, key=lambda cell: sign * (cell.score or 0.0))

    def heatmap(self) -> Table:
        """Return the scores with eta_V downwards, largest first, and eta to the right, coloured.

        The colours go from the worst score (red) to the best (green); a diverged run says so.
        """
        queries = sorted({cell.query_learning_rate for cell in self.cells})
        values = sorted({cell.value_learning_rate for cell in self.cells}, reverse=True)
        found = {(c.value_learning_rate, c.query_learning_rate): c for c in self.cells}
        title = next((cell.headline for cell in self.cells if cell.headline), "all diverged")
        shown = Table(title=title)
        shown.add_column("value \\ query", justify="right")
        for query in queries:
            shown.add_column(f"{query:.3g}", justify="right")
        for value in values:
            cells = [found.get((value, query)) for query in queries]
            shown.add_row(f"{value:.3g}", *(self._shown(cell) for cell in cells))
        return shown

    def _shown(self, cell: Cell | None) -> Text:
        if cell is None:
            return Text("")
        if cell.score is None:
            return Text("diverged", style="italic")
        scores = [other.score for other in self.cells if other.score is not None]
        low, high = min(scores), max(scores)
        place = (cell.score - low) / (high - low) if high > low else 1.0
        good = 1 - place if lower_is_better(cell.headline) else place
        red, green = round(215 - 135 * good), round(80 + 135 * good)
        return Text(f"{cell.score:.4f}", style=f"black on #{red:02x}{green:02x}50")


def rates_for_ratios(value_learning_rate: float, ratios: Sequence[float]) -> tuple[float, ...]:
    """Return the query's rates that make these ratios with one rate of the value.

    For the sweep along one line: tune the value's rate first, then its ratio to the query's.
    """
    return tuple(value_learning_rate / ratio for ratio in ratios)


def sweep(
    model: str | Path,
    data: Any,
    *,
    query_learning_rates: Sequence[float],
    value_learning_rates: Sequence[float],
    output: str | Path,
    assignments: Mapping[str, Any] | None = None,
    console: Console | None = None,
    **given: Any,
) -> Sweep:
    """Train EfficientFT with every pair of rates, and write `sweep.json` and `sweep.html`.

    A trial that is already in the folder is not trained again, and an unfinished one goes on, so an
    interrupted sweep can be called again, with more rates too. Every trial is scored on the
    validation split, never on the test: rates are chosen by it.

    Args:
        model: as for `finetune`.
        data: as for `finetune`.
        query_learning_rates: eta, of query, key and head.
        value_learning_rates: eta_V.
        output: folder of all trials.
        assignments: parameters of the recipe `efficientft` (`host`, `targets`) and fields.
        console: where to show progress.
        given: further arguments of `finetune`.

    Returns:
        Every trial, in the order of the grid.

    Raises:
        InputError: no rates, a folder with trials of another model, data or recipe, or anything
            that `finetune` refuses.
    """
    if not query_learning_rates or not value_learning_rates:
        raise InputError("the sweep has no rates: give at least one of the query, one of the value")
    console = console or Console(stderr=True)
    folder = Path(output)
    examples = load(data, columns=given.get("columns"), task=given.get("task"), seed=0)
    asked = {
        "model": str(model),
        "data": examples.source,
        "data_fingerprint": examples.fingerprint,
        "assignments": {key: str(value) for key, value in (assignments or {}).items()},
        **({"metric": given["metric"]} if given.get("metric") else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    known = _recorded(folder / "sweep.json", asked)
    cells: list[Cell] = []
    for value, query in itertools.product(value_learning_rates, query_learning_rates):
        cell = known.get((query, value))
        if cell is None:
            chosen = {**(assignments or {}), **_rates(query, value)}
            trial = RunFolder(folder / f"query-{query:g}_value-{value:g}")
            found = _scores(model, data, trial, chosen, console, given)
            cell = Cell(query_learning_rate=query, value_learning_rate=value, **found)
        known[query, value] = cell
        cells.append(cell)
        rows = [known[pair].to_dict() for pair in known]
        write_json_atomically(folder / "sweep.json", {**asked, "rows": rows})
    finished = Sweep(tuple(cells))
    console.print(finished.heatmap())
    write_text_atomically(folder / "sweep.html", _page(finished))
    return finished


def _rates(query: float, value: float) -> dict[str, float]:
    return {"value_learning_rate": value, "value_learning_rate_ratio": value / query}


def _recorded(path: Path, asked: Mapping[str, Any]) -> dict[tuple[float, float], Cell]:
    """Return the trials that the folder has, which must be of the same model, data and recipe."""
    if not path.is_file():
        return {}
    recorded = json.loads(path.read_text(encoding="utf-8"))
    for key, value in asked.items():
        if recorded.get(key) != value:
            raise InputError(
                f"{str(path)!r} holds trials with {key}={recorded.get(key)!r}, not {value!r}: give "
                f"another output folder"
            )
    cells = [Cell.from_dict(row) for row in recorded["rows"]]
    return {(cell.query_learning_rate, cell.value_learning_rate): cell for cell in cells}


def _scores(
    model: str | Path,
    data: Any,
    folder: RunFolder,
    assignments: Mapping[str, Any],
    console: Console,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Train one trial; return its scores, or what made it diverge."""
    try:
        if not folder.is_finished:
            resume = folder.recipe.is_file()
            options: dict[str, Any] = {
                "output": folder.path,
                "assignments": assignments,
                "resume": resume,
            }
            finetune(model, data, console=console, scored_on="validation", **options, **given)
    except Diverged as error:
        return {"scores": {}, "headline": "", "diverged": str(error)}
    result = folder.read(folder.evaluation)
    if result.get("collapse"):  # of a run that was done when the sweep was stopped
        return {"scores": {}, "headline": "", "diverged": result["collapse"]}
    after = result["after"]
    return {"scores": after["metrics"], "headline": after["headline"]}


def _page(finished: Sweep) -> str:
    console = Console(record=True, width=110, quiet=True)
    console.print(finished.heatmap())
    return console.export_html(inline_styles=True)

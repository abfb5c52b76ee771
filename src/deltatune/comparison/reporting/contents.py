"""What `comparison.json` holds, read with care: anything but the names may be missing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from deltatune.errors import InputError

__all__ = [
    "Budget",
    "Column",
    "Comparison",
    "Number",
    "Pair",
    "Plan",
    "RecipeRow",
    "Run",
    "Statistics",
    "SweepGrid",
    "field_value",
    "read_comparison",
]

FORMAT = 1


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]  # None: not measured
Better = Literal["higher", "lower", ""]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """Take null for what is left out: both mean that it is not known."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


class Column(_Part):
    """What is told of every recipe; `better` is empty where more is neither better nor worse."""

    name: str
    title: str = ""
    unit: str = ""
    better: Better = ""
    what: str = ""


class Statistics(_Part):
    """One column of one recipe over its seeds; `low` and `high` are the 95 % interval."""

    mean: Number = None
    spread: Number = None
    low: Number = None
    high: Number = None
    values: tuple[Number, ...] = ()


class RecipeRow(_Part):
    """One recipe; without rank and rate where no final run of it finished."""

    name: str
    status: str = "finished"
    learning_rate: Number = None
    rank: int | None = None
    columns: dict[str, Statistics | None] = {}
    notes: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}

    def statistics(self, column: str) -> Statistics:
        """Return what was measured of a column; empty if nothing was."""
        return self.columns.get(column) or Statistics()

    def mean(self, column: str) -> float | None:
        """Return the mean over seeds; None if it was not measured."""
        return self.statistics(column).mean


class Run(_Part):
    """One training: a trial of a learning rate, a final run, or a cell of a sweep."""

    name: str
    recipe: str = ""
    kind: str = "final"
    learning_rate: Number = None
    seed: int | None = None
    settings: dict[str, Any] = {}
    status: str = "finished"
    message: str = ""
    score: Number = None
    losses: tuple[tuple[float, Number], ...] = ()
    columns: dict[str, Number] = {}


class Pair(_Part):
    """Two recipes compared; a missing number of items means that more seeds are needed."""

    first: str
    second: str
    mean: Number = None
    low: Number = None
    high: Number = None
    p_value: Number = None
    adjusted_p_value: Number = None
    items_needed: Number = None
    is_significant: bool = False


class SweepGrid(_Part):
    """Scores over one or two fields of the recipe; `cells[y][x]`, None where a run failed."""

    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    cells: tuple[tuple[Number, ...], ...]
    messages: tuple[tuple[str | None, ...], ...] = ()

    def place(self, y: int, x: int) -> str:
        """Return the values that a cell stands for."""
        return ", ".join(
            f"{field} = {field_value(values[i])}"
            for field, values, i in zip(self.fields, self.values, (x, y), strict=False)
        )

    def message(self, y: int, x: int) -> str:
        """Return why a cell has no score; a dash where that is not known."""
        known = y < len(self.messages) and x < len(self.messages[y])
        return (self.messages[y][x] if known else "") or "no score"


class Budget(_Part):
    """What each recipe may spend."""

    kind: str = "tokens"
    amount: Number = None
    per: str = "recipe"


class Plan(_Part):
    """What was to be done, with the time and memory that were expected."""

    jobs: tuple[Any, ...] = ()
    predicted: dict[str, dict[str, Number]] = {}
    lines: tuple[str, ...] = ()


class Comparison(_Part):
    """Everything a reader needs."""

    format: int
    title: str = "Comparison"
    model: str = ""
    data: str = ""
    task: str = ""
    metric: str = "score"
    higher_is_better: bool = True
    chance: Number = None
    ceiling: Number = None
    budget: Budget = Budget()
    trials: int | None = None
    seeds: tuple[int, ...] = ()
    columns: tuple[Column, ...] = ()
    recipes: tuple[RecipeRow, ...] = ()
    runs: tuple[Run, ...] = ()
    differences: tuple[Pair, ...] = ()
    sweep: SweepGrid | None = None
    plan: Plan = Plan()
    environment: dict[str, Any] = {}
    notes: tuple[str, ...] = ()

    def best_first(self) -> list[RecipeRow]:
        """Return the recipes by rank, then score, then name; those that failed come last."""
        sign = -1.0 if self.higher_is_better else 1.0

        def place(row: RecipeRow) -> tuple[bool, float, bool, float, str]:
            score = row.mean("score")
            rank = math.inf if row.rank is None else row.rank
            failed = row.status == "failed"
            return failed, rank, score is None, sign * (score or 0.0), row.name

        return sorted(self.recipes, key=place)

    def measured_columns(self) -> list[Column]:
        """Return the columns in which at least one recipe has a number."""
        return [c for c in self.columns if any(r.mean(c.name) is not None for r in self.recipes)]

    def means(self, column: str) -> list[float | None]:
        """Return the means of all recipes in one column."""
        return [row.mean(column) for row in self.recipes]

    def column(self, name: str) -> Column:
        """Return a column by name; one with this name and no more if the file has none."""
        found = (column for column in self.columns if column.name == name)
        return next(found, Column(name=name, title=name))


def field_value(value: Any) -> str:
    """Return a value of a swept field as the command line would have it.

    >>> field_value(0.00050), field_value(True)
    ('0.0005', 'True')
    """
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_comparison(folder: Path) -> Comparison:
    """Read `comparison.json` of a folder.

    Raises:
        InputError: there is none, or it is of another format.
    """
    path = folder / "comparison.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no comparison.json: give the folder of a comparison")
    try:
        return _checked(Comparison.model_validate(json.loads(path.read_text(encoding="utf-8"))))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): make the comparison again") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {first['msg']}: make the comparison again") from error


def _checked(comparison: Comparison) -> Comparison:
    if comparison.format != FORMAT:
        raise InputError(
            f"comparison.json has format {comparison.format}, known is {FORMAT}: "
            f"read it with the version of deltatune that wrote it"
        )
    return comparison

"""Numbers as a reader wants them: one unit for a column, three or four digits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from deltatune.comparison.reporting.contents import Column

__all__ = ["MISSING", "Unit", "number", "p_value", "rate", "unit_of"]

MISSING = "–"  # noqa: RUF001 - a dash, as tables have it

Steps = tuple[tuple[float, float, str], ...]  # from this size on, divide by this, call it that

BYTES: Steps = ((0, 1, "B"), (2**10, 2**10, "KiB"), (2**20, 2**20, "MiB"), (2**30, 2**30, "GiB"))
SECONDS: Steps = (
    (0, 1e-3, "ms"),
    (1, 1, "s"),
    (180, 60, "min"),
    (10800, 3600, "h"),
)
FLOPS: Steps = (
    (0, 1, "FLOPs"),
    (1e6, 1e6, "MFLOPs"),
    (1e9, 1e9, "GFLOPs"),
    (1e12, 1e12, "TFLOPs"),
    (1e15, 1e15, "PFLOPs"),
)
ENERGY: Steps = ((0, 1e-6, "mWh"), (1e-3, 1e-3, "Wh"), (1, 1, "kWh"))
MASS: Steps = ((0, 1e-6, "mg"), (1e-3, 1e-3, "g"), (1, 1, "kg"))

# The columns' names are fixed and end in what they count.
ENDINGS: tuple[tuple[str, Steps], ...] = (
    ("_bytes", BYTES),
    ("_seconds", SECONDS),
    ("flops", FLOPS),
    ("_kilowatt_hours", ENERGY),
    ("_kilograms", MASS),
)
COUNTED = ("parameters", "tokens_per_second")  # whole things, that need no unit
SCORE_DIGITS = ((0.0005, None), (0.1, 4), (10.0, 3), (1000.0, 2))  # below a size, so many digits


@dataclass(frozen=True)
class Unit:
    """How the numbers of one column are shown.

    Args:
        divisor: what a number of the file is divided by.
        name: of the unit after that; may be empty.
        digits: after the point, the same for the whole column; None: what each number needs.
    """

    divisor: float = 1.0
    name: str = ""
    digits: int | None = None

    def scaled(self, value: float | None) -> float | None:
        """Return a number in this unit."""
        return None if value is None else value / self.divisor

    def bare(self, value: float | None, *, like: float | None = None) -> str:
        """Return a number in this unit, without its name, with the digits that `like` needs."""
        if value is None:
            return MISSING
        if self.digits is not None:
            return f"{value / self.divisor:,.{self.digits}f}"
        return number(value / self.divisor, like=None if like is None else like / self.divisor)

    def full(self, value: float | None) -> str:
        """Return a number with the unit's name."""
        return f"{self.bare(value)} {self.name}".strip() if value is not None else MISSING

    def titled(self, title: str) -> str:
        """Return a heading with the unit in brackets."""
        return f"{title} ({self.name})" if self.name else title


def unit_of(column: Column, values: Iterable[float | None]) -> Unit:
    """Return the unit in which the largest of the values reads well.

    >>> unit_of(Column(name="adapter_bytes"), [3 * 2**20, 12.0])
    Unit(divisor=1048576, name='MiB', digits=None)
    """
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    for ending, steps in ENDINGS:
        if column.name.endswith(ending):
            _, divisor, name = [step for step in steps if largest >= step[0]][-1]
            return Unit(divisor, name)
    if any(counted in column.name for counted in COUNTED):
        return Unit(digits=0)
    digits = next((digits for size, digits in SCORE_DIGITS if largest < size), None)
    return Unit(1.0, column.unit, digits if column.name == "score" else None)


def number(value: float, *, like: float | None = None) -> str:
    """Return a number with as many digits as a reader can use.

    Args:
        value: the number.
        like: another one that decides how many digits, for what stands beside it.

    >>> [number(value) for value in (0.81234, 12.345, 1234567.0, 3e-05, 0, -0.25, 21.0)]
    ['0.812', '12.3', '1,234,567', '3.0e-05', '0', '-0.250', '21.0']
    >>> number(0.0123, like=0.81234)
    '0.012'
    """
    size = abs(value if like is None else like)
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if size >= 1e9 or size < 0.001:
        return f"{value:.1e}"
    digits = ((0.1, 4), (1, 3), (10, 2), (1000, 1))
    return f"{value:,.{next((count for limit, count in digits if size < limit), 0)}f}"


def rate(value: float | None) -> str:
    """Return a learning rate in its shortest form.

    >>> rate(0.002), rate(5e-05)
    ('0.002', '5e-05')
    """
    return MISSING if value is None else f"{value:.3g}"


def p_value(value: float | None) -> str:
    """Return a p-value; below 0.001 only that it is.

    >>> p_value(0.0312), p_value(1e-9)
    ('0.031', '< 0.001')
    """
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

"""What a run draws from the grid: counted where the machine has counters, else estimated."""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from typing import Any

from deltatune.errors import InputError

__all__ = ["PUE", "EnergyMeter"]

PUE = 1.1  # what a data centre draws for one unit that its computers draw
SAMPLE_SECONDS = 1.0
LIBRARY = "codecarbon"
LARGEST_PUE = 3.0


class EnergyMeter:
    """Energy of a block of work, and its carbon where the grid's intensity is known.

        energy = (power integrated over time) * PUE;  carbon = energy * grid intensity

    codecarbon measures: RAPL for processors and NVML for GPUs where they can be read, which count
    the whole machine; elsewhere an estimate for this process and its children, from its processor
    time and the processor's thermal design power. Memory is always an estimate. Nothing is sent or
    written, and its log is kept quiet while it measures. A meter can be entered again: the parts
    add up.

    Args:
        grid_intensity: kilograms of CO2 equivalent for a kilowatt-hour; without it no carbon is
            given, since no default would be right.
        pue: power usage effectiveness, from 1.0.
        kilowatts: the power of everything that works, where it is known: then nothing is measured
            but time.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        *,
        grid_intensity: float | None = None,
        pue: float = PUE,
        kilowatts: float | None = None,
    ) -> None:
        """Check the numbers; nothing is started."""
        _check("grid_intensity", grid_intensity, 0.0, math.inf, "0.4 (kg for a kilowatt-hour)")
        _check("pue", pue, 1.0, LARGEST_PUE, str(PUE))
        _check("kilowatts", kilowatts, 0.0, math.inf, "0.4")
        self.grid_intensity = grid_intensity
        self.pue = pue
        self._source: _Constant | _CodeCarbon | _Nothing
        if kilowatts is not None:
            self._source = _Constant(kilowatts)
        elif importlib.util.find_spec(LIBRARY) is not None:
            self._source = _CodeCarbon()
        else:
            self._source = _Nothing()
        self._parts: list[float | None] = []  # kilowatt-hours, without the data centre's own

    def __enter__(self) -> EnergyMeter:
        """Measure from here on."""
        self._source.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.append(self._source.stop())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values.

        `energy_source` is `counter` where processors and GPUs were counted, `estimate` where one
        of them was not, or says why nothing was measured; `energy_measured` tells what was.
        """
        energy = self._energy()
        intensity = self.grid_intensity
        carbon = None if energy is None or intensity is None else energy * intensity
        return {
            "energy_kilowatt_hours": energy,
            "carbon_kilograms": carbon,
            "energy_source": self._source.source,
            "energy_measured": self._source.measured,
            "power_usage_effectiveness": self.pue,
            "grid_intensity_kilograms_per_kilowatt_hour": intensity,
        }

    def _energy(self) -> float | None:
        known = [part for part in self._parts if part is not None]
        return sum(known) * self.pue if known and len(known) == len(self._parts) else None


def _check(name: str, value: float | None, lowest: float, highest: float, example: str) -> None:
    if value is not None and not (math.isfinite(value) and lowest <= value <= highest):
        bounds = f"from {lowest:g}" + ("" if math.isinf(highest) else f" to {highest:g}")
        raise InputError(
            f"{name}={value} is not allowed: give a number {bounds}, such as {example}"
        )


class _Constant:
    """A power that somebody knows, times the time."""

    source = "estimate"

    def __init__(self, kilowatts: float) -> None:
        self.kilowatts = kilowatts
        self.measured = f"time, at a constant power of {kilowatts:g} kW"

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> float:
        return self.kilowatts * (time.perf_counter() - self._began) / 3600


class _Nothing:
    """No library is there that could measure."""

    source = "not measured: install deltatune[energy]"
    measured = ""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Know nothing."""


class _CodeCarbon:
    """codecarbon's offline tracker, kept quiet."""

    source = "not measured: nothing has run"
    measured = ""

    def start(self) -> None:
        # It speaks before it reads the level that it is given, and from its threads.
        self._logger = logging.getLogger(LIBRARY)
        self._logged = (self._logger.disabled, self._logger.level, list(self._logger.handlers))
        self._logger.disabled = True
        from codecarbon import OfflineEmissionsTracker  # a second to import: only where it is used

        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA",  # must be given, and decides only a carbon that nobody reads
            output_methods=[],
            emissions_endpoint=None,
            allow_multiple_runs=True,
            measure_power_secs=SAMPLE_SECONDS,
            tracking_mode="process",
            pue=1.0,
        )
        self._tracker.start()

    def stop(self) -> float | None:
        try:
            self._tracker.stop()
            # It hides its own failures, and has then no figures.
            figures = getattr(self._tracker, "final_emissions_data", None)
        finally:
            self._logger.disabled, level, self._logger.handlers = self._logged
            self._logger.setLevel(level)
        if figures is None:
            self.source = "not measured: codecarbon could read nothing on this machine"
            return None
        self._describe(figures)
        return float(figures.energy_consumed)

    def _describe(self, figures: Any) -> None:
        from codecarbon.core.cpu import is_rapl_available

        counts_processor = is_rapl_available()
        parts = [
            "processor by RAPL" if counts_processor else "processor by its time and design power"
        ]
        if figures.gpu_energy > 0:
            parts.append("GPUs by their counters")
        self.source = "counter" if counts_processor else "estimate"
        self.measured = ", ".join([*parts, "memory by its size"])

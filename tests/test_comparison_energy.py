"""Energy: the worked example of the design card, sums, and a quiet library."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltatune.comparison.energy import EnergyMeter
from deltatune.errors import InputError

HOUR = 3600.0


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets a number of hours go by."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def go_by(number: float) -> None:
        now[0] += number * HOUR

    return go_by


def test_eight_devices_for_ten_hours_draw_what_the_card_says(hours: Any) -> None:
    with EnergyMeter(kilowatts=8 * 0.4, grid_intensity=0.4) as meter:
        hours(10)
    found = meter.to_dict()
    assert found["energy_kilowatt_hours"] == pytest.approx(35.2)  # 32 kWh, times a PUE of 1.1
    assert found["carbon_kilograms"] == pytest.approx(14.08)
    assert found["power_usage_effectiveness"] == 1.1
    assert found["energy_source"] == "estimate"
    assert found["energy_measured"] == "time, at a constant power of 3.2 kW"


def test_no_time_draws_nothing(hours: Any) -> None:
    with EnergyMeter(kilowatts=0.4, grid_intensity=0.4) as meter:
        hours(0)
    found = meter.to_dict()
    assert (found["energy_kilowatt_hours"], found["carbon_kilograms"]) == (0.0, 0.0)


def test_intervals_add_up(hours: Any) -> None:
    parts = EnergyMeter(kilowatts=0.4)
    for number in (1.5, 2.5):
        with parts:
            hours(number)
        hours(7)  # between them nothing is measured
    with EnergyMeter(kilowatts=0.4) as whole:
        hours(4)
    energies = [one.to_dict()["energy_kilowatt_hours"] for one in (parts, whole)]
    assert energies[0] == pytest.approx(energies[1]) == pytest.approx(0.4 * 4 * 1.1)


def test_carbon_without_a_grid_is_not_known(hours: Any) -> None:
    with EnergyMeter(kilowatts=0.4) as meter:
        hours(1)
    assert meter.to_dict()["carbon_kilograms"] is None


def test_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with EnergyMeter(grid_intensity=0.4) as meter:
        pass
    found = meter.to_dict()
    assert found["energy_source"] == "not measured: install deltatune[energy]"
    assert (found["energy_kilowatt_hours"], found["carbon_kilograms"]) == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pue": 0.9}, "pue=0.9 is not allowed: give a number from 1 to 3, such as 1.1"),
        ({"grid_intensity": -1.0}, "grid_intensity=-1.0 is not allowed: give a number from 0"),
        ({"kilowatts": float("nan")}, "kilowatts=nan is not allowed: give a number from 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EnergyMeter(**options)


def _global_state() -> tuple[Any, ...]:
    logger = logging.getLogger("codecarbon")
    return (
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        (logger.disabled, logger.level, list(logger.handlers)),
        (logging.getLogger().level, list(logging.getLogger().handlers)),
        dict(os.environ),
        threading.active_count(),
    )


def test_library_measures_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("codecarbon")
    called: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: called.append(address))
    monkeypatch.chdir(tmp_path)
    before = _global_state()
    with EnergyMeter(grid_intensity=0.5) as meter:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            sum(range(1000))
    found = meter.to_dict()
    assert found["energy_kilowatt_hours"] > 0
    assert found["carbon_kilograms"] == pytest.approx(0.5 * found["energy_kilowatt_hours"])
    assert found["energy_source"] in ("counter", "estimate")
    assert "memory by its size" in found["energy_measured"]
    assert called == []
    assert list(tmp_path.iterdir()) == []
    assert _global_state() == before
    assert capfd.readouterr() == ("", "")


def test_failing_library_gives_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    codecarbon = pytest.importorskip("codecarbon")
    tracker = codecarbon.OfflineEmissionsTracker
    monkeypatch.setattr(tracker, "start", lambda self: None)
    monkeypatch.setattr(tracker, "stop", lambda self: None)
    with EnergyMeter(grid_intensity=0.5) as meter:
        pass
    found = meter.to_dict()
    assert found["energy_source"] == ("not measured: codecarbon could read nothing on this machine")
    assert (found["energy_kilowatt_hours"], found["carbon_kilograms"]) == (None, None)

"""Whatever happens to a run's process is an outcome, and being asked to stop stops it too."""

from __future__ import annotations

import io
import os
import signal
import threading
import time

import pytest
from rich.console import Console

from deltatune.comparison import engines
from deltatune.comparison.jobs import Job, Outcome
from deltatune.comparison.worker import Order
from deltatune.errors import InputError, Interrupted

JOB = Job(recipe="lora", kind="final", settings={}, seed=0, scored_on="test")


@pytest.fixture
def order(tmp_path):
    return Order(
        job=JOB,
        recipe={},
        runs=str(tmp_path),
        model="m",
        data="d",
        columns=None,
        task=None,
        metric="",
        allow_remote_code=False,
        forgetting_data="",
        grid_intensity=None,
    )


def script(tmp_path, monkeypatch, text):
    """Put a script in the place of Python."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(engines.sys, "executable", str(path))


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("kill -9 $$", "killed", "SIGKILL, as the system does where memory runs out"),
        ("kill -11 $$", "killed", "SIGSEGV"),
        ("echo one; echo 'ValueError: so' >&2; exit 1", "failed", "ValueError: so"),
        ("echo 'MemoryError'; exit 1", "out of memory", "MemoryError"),
        ("exit 0", "failed", "no output"),
    ],
)
def test_a_process_that_ends_badly_is_an_outcome(
    order, tmp_path, monkeypatch, text, status, message
):
    script(tmp_path, monkeypatch, text)
    said = io.StringIO()
    engines.one_after_another([order], Console(file=said, width=200))
    found = Outcome.of(tmp_path, JOB)
    assert found.status == status
    assert message in found.message
    assert f"run 1 of 1: lora-final-seed-0: {status}: " in said.getvalue()


def test_an_outcome_of_an_earlier_try_is_not_taken_for_this_one(order, tmp_path, monkeypatch):
    Outcome(status="finished").save(tmp_path, JOB)
    script(tmp_path, monkeypatch, "exit 3")
    assert engines.run_worker(order).status == "failed"


def test_being_asked_to_stop_stops_the_run_and_says_how_to_go_on(order, tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, f"trap 'touch {tmp_path}/saved; exit 1' TERM; sleep 30 & wait $!")
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="SIGTERM: what is done is saved"):
        engines.one_after_another([order], Console(file=io.StringIO()))
    assert time.monotonic() - began < 20
    assert (tmp_path / "saved").exists()
    assert Outcome.of(tmp_path, JOB).status == "waiting"
    assert signal.getsignal(signal.SIGTERM) is before


def test_unknown_engine_is_refused():
    with pytest.raises(InputError, match="engine 'rey' is not known: choose one of"):
        engines.engine_named("rey")

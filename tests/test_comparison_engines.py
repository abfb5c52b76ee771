"""Whatever happens to a run's process is an outcome, and being asked to stop stops it too."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from deltatune.comparison import engines, worker
from deltatune.comparison.comparison_plan import RATE
from deltatune.comparison.jobs import Job, Outcome
from deltatune.errors import InputError, Interrupted
from deltatune.file_lock import held
from tests import comparisons

JOB = Job(recipe="lora", kind="final", settings={}, seed=0, scored_on="test")


@pytest.fixture
def order(tmp_path):
    return comparisons.order(tmp_path, JOB, {})


def script(tmp_path, monkeypatch, text):
    """Put a script in the place of Python."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


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


def test_an_earlier_try_gives_no_reason_for_this_one(order, tmp_path, monkeypatch):
    order.log.write_text("MemoryError\n")
    script(tmp_path, monkeypatch, "exit 1")
    found = engines.run_worker(order)
    assert (found.status, found.message) == ("failed", "no output")


def test_a_run_at_another_rate_is_put_away_and_not_taken_for_this_one(order, tmp_path, monkeypatch):
    former = dataclasses.replace(order, job=dataclasses.replace(JOB, settings={RATE: 0.1}))
    former.save()
    order.folder.path.mkdir()
    (order.folder.path / "recipe.yaml").write_text("former")
    Outcome(status="finished").save(tmp_path, former.job)
    assert Outcome.of(tmp_path, former.job).status == "finished"
    assert Outcome.of(tmp_path, JOB).status == "waiting"
    script(tmp_path, monkeypatch, f"test -e {order.folder.recipe} || echo fresh; exit 1")
    assert engines.run_worker(order).message == "fresh"
    put_away = tmp_path / f"{JOB.name}.former-1"
    assert (put_away / "recipe.yaml").read_text() == "former"
    engines.make_ready(order)
    assert [path.name for path in tmp_path.glob("*.former-*")] == [put_away.name]


def test_a_run_that_does_not_stop_when_asked_is_ended(order, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "STOPPING_SECONDS", 0.2)
    script(
        tmp_path, monkeypatch, f"trap '' TERM; touch {tmp_path}/begun; while :; do sleep 1; done"
    )
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Interrupted, match="SIGINT"):
        engines.run_worker(order)
    assert (tmp_path / "begun").exists()


def test_a_worker_stops_when_its_comparison_ended_while_it_began(monkeypatch):
    sent = []
    monkeypatch.setattr(worker.os, "kill", lambda process, number: sent.append((process, number)))
    worker._stop_when_alone(2**22 + 1)  # no process has that number: our parent is another
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_worker_waits_for_the_one_before_it(order, tmp_path, monkeypatch):
    order.save()
    done = []

    def work(given):
        done.append(time.monotonic())
        return Outcome(status="finished")

    monkeypatch.setattr(worker, "work", work)
    monkeypatch.setattr(sys, "argv", ["worker", str(order.path), str(os.getppid())])
    with held(order.lock, "it"):
        thread = threading.Thread(target=worker.main)
        thread.start()
        time.sleep(0.5)
        assert not done
    thread.join(10)
    assert Outcome.of(tmp_path, JOB).status == "finished"
    monkeypatch.setattr(worker, "STOPPING_SECONDS", 0.0)
    with (
        held(order.lock, "it"),
        pytest.raises(SystemExit, match=f"lora-final-seed-0' is being .* process {os.getpid()}:"),
    ):
        worker.main()


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


@pytest.mark.parametrize("engine", ["local", engines.one_after_another])
def test_an_address_is_refused_by_an_engine_that_has_no_cluster(engine):
    with pytest.raises(InputError, match="address 'auto' is of no use to"):
        engines.engine_named(engine, "auto")

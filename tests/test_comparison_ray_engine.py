"""Runs on a Ray cluster end as they do here, whatever is lost on the way."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import sys
from types import ModuleType

import pytest
from rich.console import Console

from deltatune.comparison import ray_engine
from deltatune.comparison.engines import engine_named
from deltatune.comparison.jobs import Job, Outcome
from deltatune.comparison.ray_engine import Needs, RayEngine, carry_out, with_checkpoints
from deltatune.errors import InputError, Interrupted
from tests import comparisons

JOB = Job(recipe="lora", kind="final", settings={}, seed=0, scored_on="test")


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


class Fake(ModuleType):
    """A cluster that does tasks one by one when it is asked for them, and loses some."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause = None

    def __init__(self, answers=()):
        super().__init__("ray")
        self.answers = list(answers)
        self.calls, self.cancelled, self.started = [], [], []

    def is_initialized(self):
        return False

    def init(self, **options):
        self.started.append(options)

    def shutdown(self):
        self.started.append("shut down")

    def nodes(self):
        return [node(CPU=1.0)]

    def remote(self, **options):
        self.options = options

        def of(function):
            self.function = function
            return self

        self.remote = lambda *given: self.calls.append(given) or len(self.calls) - 1
        return of

    def wait(self, handles, num_returns=1, timeout=None):
        return handles[:1], handles[1:]

    def get(self, handle):
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return dataclasses.asdict(answer) if answer else self.function(*self.calls[handle])

    def cancel(self, handle):
        self.cancelled.append(handle)


@pytest.fixture
def order(tmp_path):
    return comparisons.order(
        tmp_path, JOB, {"training": {"checkpoint_every": 0, "steps": 42, "seed": 0}}
    )


def carried_out(monkeypatch, orders, fake, address=""):
    """Carry out orders on a fake cluster; return what was said."""
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: object())
    said = io.StringIO()
    engine_named("ray", address)(orders, Console(file=said, width=200))
    return said.getvalue()


def test_ray_that_is_not_installed_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: pip install deltatune\[compare\], or"):
        engine_named("ray")


@pytest.mark.parametrize(
    ("nodes", "threads", "needs"),
    [
        ([node(CPU=2.0), node(CPU=8.0)], 4, (4, 0)),
        ([node(CPU=64.0, GPU=8.0), node(CPU=64.0)], 32, (8, 1)),
        ([node(CPU=64.0, GPU=8.0)], 1, (1, 1)),
        ([node(CPU=4.0, GPU=8.0)], 4, (1, 1)),
        ([node(False, CPU=64.0, GPU=8.0), node(CPU=1.0)], 1, (1, 0)),
    ],
)
def test_needs_are_the_threads_here_and_one_gpu_where_there_are_any(nodes, threads, needs):
    assert dataclasses.astuple(Needs.on(nodes, threads)) == needs


def test_runs_too_large_for_every_node_are_refused():
    with pytest.raises(
        InputError, match=r"takes 16 CPUs.* has 8: set OMP_NUM_THREADS to at most 8"
    ):
        Needs.on([node(CPU=8.0), node(False, CPU=99.0)], 16)


def test_checkpoints_come_each_quarter_unless_the_recipe_says_when(order):
    assert with_checkpoints(order).recipe["training"] == {
        "checkpoint_every": 10,
        "steps": 42,
        "seed": 0,
    }
    own = dataclasses.replace(order, recipe={"training": {"checkpoint_every": 7, "steps": 42}})
    assert with_checkpoints(own) == own
    short = dataclasses.replace(order, recipe={"training": {"checkpoint_every": 0, "steps": 3}})
    assert with_checkpoints(short).recipe["training"]["checkpoint_every"] == 1


def test_lost_runs_are_tried_twice_more_and_outcomes_are_written(order, monkeypatch, tmp_path):
    second = dataclasses.replace(order, job=dataclasses.replace(JOB, seed=1))
    lost, killed = Fake.exceptions.RayError("gone"), Outcome(status="killed", message="SIGKILL")
    done = Outcome(status="finished", measured={"forgetting": 0.5})
    fake = Fake([lost, killed, killed, done, killed])
    said = carried_out(monkeypatch, [order, second], fake).splitlines()
    # The fake takes the oldest first, so the two alternate: 0 lost, 1 killed, 0 killed, 1 done, 0.
    name = "run 1 of 2: lora-final-seed-0: killed: "
    assert said == [
        f"{name}its node or the Ray worker on it was lost (RayError); tried again, 1 of 2",
        "run 2 of 2: lora-final-seed-1: killed: SIGKILL; tried again, 1 of 2",
        f"{name}SIGKILL; tried again, 2 of 2",
        "run 2 of 2: lora-final-seed-1: finished",
        f"{name}SIGKILL",
    ]
    assert Outcome.of(tmp_path, JOB) == killed
    assert Outcome.of(tmp_path, second.job) == done
    assert fake.options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 0}
    assert fake.started[0]["include_dashboard"] is False
    assert fake.started[0]["address"] == "local"
    assert fake.started[-1] == "shut down"


def test_an_address_is_passed_on(order, monkeypatch):
    fake = Fake([Outcome(status="finished")])
    carried_out(monkeypatch, [order], fake, "host:6379")
    assert fake.started[0]["address"] == "host:6379"
    assert "object_store_memory" not in fake.started[0]


def test_an_error_on_a_node_fails_the_run_and_is_not_tried_again(order, monkeypatch, tmp_path):
    error = Fake.exceptions.RayTaskError()
    error.cause = ModuleNotFoundError("No module named 'deltatune'")
    carried_out(monkeypatch, [order], Fake([error]))
    found = Outcome.of(tmp_path, JOB)
    assert found.status == "failed"
    assert found.message == "ModuleNotFoundError: No module named 'deltatune'"


def test_being_asked_to_stop_cancels_what_is_on_its_way(order, monkeypatch, tmp_path):
    second = dataclasses.replace(order, job=dataclasses.replace(JOB, seed=1))
    fake = Fake([Outcome(status="finished")])
    plain = fake.wait

    def wait(handles, num_returns=1, timeout=None):
        if fake.answers == [] and not fake.cancelled:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(handles)

    fake.wait = wait
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM: what is done is saved"):
        carried_out(monkeypatch, [order, second, second], fake)
    assert fake.cancelled == [1, 2]
    assert fake.started[-1] == "shut down"
    assert Outcome.of(tmp_path, JOB).status == "finished"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_was_stopped_on_its_node_is_lost_not_failed(order, monkeypatch, tmp_path):
    error = Fake.exceptions.RayTaskError()
    error.cause = Interrupted("asked to stop by SIGTERM")
    said = carried_out(monkeypatch, [order], Fake([error, Outcome(status="finished")]))
    assert "killed: Interrupted: asked to stop by SIGTERM; tried again, 1 of 2" in said
    assert Outcome.of(tmp_path, JOB).status == "finished"


def test_a_node_does_a_run_with_the_threads_it_was_given(order, monkeypatch, tmp_path):
    place = tmp_path / "place"
    (place / "runs").mkdir(parents=True)
    here = dataclasses.replace(order, runs="runs")
    monkeypatch.chdir(place)
    here.save()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = {}

    def run_worker(given):
        seen.update(order=given, threads=ray_engine.os.environ["OMP_NUM_THREADS"])
        return Outcome(status="diverged", message="so")

    monkeypatch.setattr(ray_engine, "run_worker", run_worker)
    found = carry_out(str(place / "runs" / here.path.name), str(place), 3)
    assert seen == {"order": here, "threads": "3"}
    assert Outcome(**found) == Outcome.of(place / "runs", JOB)
    assert found["status"] == "diverged"


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path):
    found = carry_out(str(tmp_path / "elsewhere" / "a.order.json"), str(tmp_path), 1)
    assert found["status"] == "failed"
    assert "does not see" in found["message"]
    assert "all nodes must share the folder" in found["message"]
    assert not list(tmp_path.iterdir())


def test_two_addresses_at_once_are_refused(monkeypatch, order):
    fake = Fake()
    fake.is_initialized = lambda: True
    with pytest.raises(InputError, match="'auto' is given, and this process is in a Ray cluster"):
        carried_out(monkeypatch, [order], fake, "auto")
    assert RayEngine(address="auto").address == "auto"

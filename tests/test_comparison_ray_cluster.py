"""A comparison on a real Ray cluster of two nodes ends as it does here, whatever is killed."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from rich.console import Console

from deltatune.bridges import session
from deltatune.comparison import comparing
from deltatune.run_folder import RunFolder
from tests.folders import completions, model_folder, rows_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed: pip install deltatune[compare]",
    ),
]
SHARED = {"training.batch_size": 4, "training.max_length": 32}
BUDGET = "tokens=60000"  # some hundred steps for each of two runs: time to be killed in
MEMORY = 80 * 2**20  # of each node's object store, the smallest that Ray takes
# Of time, memory and energy; predictions come from a timing.
OF_THE_MACHINE = (
    "peak_memory_above_base_bytes",
    "predicted_memory_bytes",
    "median_step_seconds",
    "tokens_per_second",
    "wall_seconds",
    "predicted_seconds",
    "energy_kilowatt_hours",
    "carbon_kilograms",
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(comparing, "write_reports", lambda folder: [])
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def given(place):
    return model_folder(place / "llama"), rows_file(place / "pairs.jsonl", completions(80))


@pytest.fixture(scope="module")
def undisturbed(place, given):
    record, _ = compared(given, place / "local")
    assert [run["status"] for run in record["runs"]] == ["finished"] * 2
    return record


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    head = {**node(), "include_dashboard": False}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    made.add_node(**node())
    yield made
    made.shutdown()


def node():
    """Return what a node is started with: with ports, Ray does not wait 15 s for agents to tell."""
    names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: one.getsockname()[1] for name, one in zip(names, listening, strict=True)}
    for one in listening:
        one.close()
    return {"num_cpus": 1, "object_store_memory": MEMORY, **ports}


def compared(given, output, **options):
    said = io.StringIO()
    made = comparing.compare(
        *given,
        "lora",
        budget=BUDGET,
        seeds=2,
        trials=1,
        assignments=SHARED,
        output=output,
        console=Console(file=said, width=200),
        **options,
    )
    return made.record, said.getvalue()


def comparable(record):
    """Return recipes and runs without what depends on the machine's day."""
    recipes = [
        {**one, "columns": {k: v for k, v in one["columns"].items() if k not in OF_THE_MACHINE}}
        for one in record["recipes"]
    ]
    runs = [
        (run["name"], run["status"], run["message"], run["score"], run["losses"])
        for run in record["runs"]
    ]
    return recipes, runs


def items(folder, name):
    run = RunFolder(folder / "runs" / name)
    return run.read(run.evaluation)["after"]["items"]


def has_checkpoint(run):
    return session.latest(RunFolder(run).checkpoints) is not None


def process_of(run):
    """Return the process that does a run, or None."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "deltatune.comparison.worker" in words and str(run.with_suffix(".order.json")) in words:
            return process
    return None


def when(is_so, then, within=300.0):
    """Do something in a thread as soon as something is so; return the thread and what was done."""
    done = []

    def wait():
        deadline = time.monotonic() + within
        while not is_so():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        done.append(then())

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, done


def went_on(run):
    """Tell whether a run did not do its first steps a second time."""
    said = re.findall(r"^step (\d+)/", run.with_suffix(".log").read_text(), re.MULTILINE)
    return said.count(said[0]) == 1


def test_a_killed_run_goes_on_and_the_comparison_is_the_undisturbed_one(
    given, undisturbed, cluster, place
):
    run = place / "killed" / "runs" / "lora-final-seed-0"
    thread, done = when(lambda: has_checkpoint(run), lambda: process_of(run).kill())
    record, said = compared(given, place / "killed", engine="ray", address=cluster.address)
    thread.join(1)
    assert done
    assert "lora-final-seed-0: killed: the process was ended by SIGKILL" in said
    assert "tried again, 1 of 2" in said
    assert went_on(run)
    assert comparable(record) == comparable(undisturbed)
    for name in ("lora-final-seed-0", "lora-final-seed-1"):
        assert items(place / "killed", name) == items(place / "local", name)


def test_a_lost_node_s_run_goes_on_elsewhere(given, undisturbed, cluster, place):
    runs = place / "lost" / "runs"
    both = [runs / f"lora-final-seed-{seed}" for seed in (0, 1)]
    (lost,) = cluster.worker_nodes
    thread, done = when(
        lambda: all(map(has_checkpoint, both)),
        lambda: cluster.remove_node(lost, allow_graceful=False),
    )
    record, said = compared(given, place / "lost", engine="ray", address=cluster.address)
    thread.join(1)
    assert done
    assert said.count("tried again, 1 of 2") == 1
    assert "its node or the Ray worker on it was lost" in said
    assert all(map(went_on, both))
    assert comparable(record) == comparable(undisturbed)


def test_a_stopped_comparison_saves_its_steps_and_goes_on_with_another_engine(
    given, undisturbed, place
):
    model, data = given
    words = ["--model", model, "--data", data, "--recipes", "lora", "--output", place / "stopped"]
    words += ["--budget", BUDGET, "--seeds", "2", "--trials", "1", "--engine", "ray"]
    for key, value in SHARED.items():
        words += ["--set", f"{key}={value}"]
    run = place / "stopped" / "runs" / "lora-final-seed-0"
    with subprocess.Popen(
        [sys.executable, "-m", "deltatune.cli", "compare", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        thread, done = when(
            lambda: has_checkpoint(run), lambda: os.kill(process.pid, signal.SIGINT)
        )
        _, error = process.communicate(timeout=150)
        thread.join(1)
    assert done
    assert process.returncode == 1, error
    assert "deltatune: asked to stop by SIGINT" in error
    assert "Traceback" not in error
    assert process_of(run) is None
    step = session.step_of(session.latest(RunFolder(run).checkpoints))
    assert RunFolder(run).read_metrics()[-1]["step"] == step
    record, _ = compared(given, place / "stopped")
    assert went_on(run)
    assert comparable(record) == comparable(undisturbed)
    outcome = json.loads(run.with_suffix(".json").read_text())
    assert outcome["measured"]["energy_kilowatt_hours"] is None

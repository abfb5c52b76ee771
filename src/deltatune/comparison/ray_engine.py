"""The runs of a comparison on the nodes of a Ray cluster, each still a process of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deltatune.bridges.interruption import Interruption
from deltatune.comparison.engines import interrupted, make_ready, run_worker, tell
from deltatune.comparison.jobs import Outcome
from deltatune.comparison.worker import STOPPING_SECONDS, Order
from deltatune.errors import InputError, Interrupted

__all__ = ["Needs", "RayEngine", "carry_out", "with_checkpoints"]

TRIES = 3  # of a run whose process or node is lost
POLL_SECONDS = 1.0
CHECKPOINTS = 4  # of a run at least, so that a lost one goes on from there
# Of a cluster that is started here. Orders and outcomes are a few hundred bytes; Ray would keep a
# third of the machine's memory for objects.
STARTED_HERE = {"address": "local", "include_dashboard": False, "object_store_memory": 80 * 2**20}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What each run asks a node for.

    Args:
        cpus: also its `OMP_NUM_THREADS`.
        gpus: 0 or 1.
    """

    cpus: int
    gpus: int

    @classmethod
    def on(cls, nodes: Sequence[Mapping[str, Any]], threads: int) -> Needs:
        """Return what runs ask for on a cluster; the same for all, to keep them comparable.

        Without GPUs a run takes as many CPUs as PyTorch has threads in this process, so that it
        gives what engine `local` gives, to the bit. Where a node has GPUs every run takes one, on
        such nodes alone, and of the node's CPUs an even share.

        Args:
            nodes: as `ray.nodes()` tells them.
            threads: of PyTorch here.

        Raises:
            InputError: no node has so many CPUs; the run would wait for ever.
        """
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        shares = [one.get("CPU", 1) // one["GPU"] for one in alive if one.get("GPU", 0) >= 1]
        if shares:
            return cls(cpus=max(1, int(min(threads, *shares))), gpus=1)
        largest = int(max((one.get("CPU", 0) for one in alive), default=0))
        if largest < threads:
            raise InputError(
                f"each run takes {threads} CPUs, the threads that PyTorch has here, and the "
                f"largest node of the Ray cluster has {largest}: set OMP_NUM_THREADS to at most "
                f"{max(largest, 1)}"
            )
        return cls(cpus=threads, gpus=0)


@dataclass(frozen=True, kw_only=True)
class _Try:
    """One try at a run: the order's place among all, from 0 up, and the number of the try."""

    order: Order
    place: int
    number: int = 1

    def said(self, orders: int) -> str:
        return f"run {self.place + 1} of {orders}: {self.order.job.name}"

    def next(self) -> _Try:
        return dataclasses.replace(self, number=self.number + 1)


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Carries out runs on the nodes of a Ray cluster.

    Each run is a Ray task that starts the run's own process, with the resources of `Needs`. All
    nodes must see the folder of the comparison, the model and the data under the same paths (a
    shared file system), and have the same deltatune. A run whose process or node is lost is tried
    again from its last checkpoint, twice at most; a checkpoint is written at least after every
    quarter of its steps. On one machine runs go on side by side if `OMP_NUM_THREADS` leaves room;
    their times are then those of runs that share a machine, and counted energy is the machine's.

    Args:
        address: `HOST:PORT` of a cluster, or `auto` for the one that this machine is part of. If
            empty, a cluster of this machine is started and stopped again, without a dashboard.

    Raises:
        InputError: Ray is not installed.
    """

    address: str = ""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError(
                "engine 'ray' needs Ray, which is not installed: pip install deltatune[compare], "
                "or choose engine 'local'"
            )

    def __call__(self, orders: Sequence[Order], console: Console) -> None:
        """Carry out runs, and write how each ended beside its folder.

        Raises:
            InputError: no cluster answers, or none of its nodes is large enough.
            Interrupted: this process was asked to stop; the runs at hand saved their steps.
        """
        with _joined(self.address) as ray:
            needs = Needs.on(ray.nodes(), torch.get_num_threads())
            _Spread(ray, needs, console).carry_out([with_checkpoints(order) for order in orders])


class _Spread:
    """Runs on their way through a cluster."""

    def __init__(self, ray: Any, needs: Needs, console: Console) -> None:
        self._ray = ray
        self._console = console
        # Ray's own retries would not count a run's process that was killed, nor say anything.
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0}
        self._task = ray.remote(**options)(carry_out)
        self._threads = needs.cpus
        self._at_work: dict[Any, _Try] = {}

    def carry_out(self, orders: Sequence[Order]) -> None:
        """Hand out all runs, and take what comes back until nothing is on its way."""
        # Within Ray's own code an exception out of a signal's handler would be lost in another.
        with Interruption() as interruption, self._console.status("") as status:
            try:
                for place, order in enumerate(orders):
                    make_ready(order)
                    self._hand_out(_Try(order=order, place=place))
                while self._at_work:
                    ended = len(orders) - len(self._at_work)
                    status.update(f"{ended} of {len(orders)} runs have ended")
                    ready, _ = self._ray.wait(list(self._at_work), timeout=POLL_SECONDS)
                    if interruption.received is not None:
                        raise interrupted(interruption.received)
                    for handle in ready:
                        self._take(handle, len(orders))
            finally:
                self._cancel()

    def _hand_out(self, one: _Try) -> None:
        path = str(one.order.path.absolute())
        self._at_work[self._task.remote(path, os.getcwd(), self._threads)] = one

    def _take(self, handle: Any, orders: int) -> None:
        """Keep how a run ended, or hand it out again."""
        one, outcome = self._at_work.pop(handle), self._outcome(handle)
        if outcome.status == "killed" and one.number < TRIES:
            again = f"; tried again, {one.number} of {TRIES - 1}"
            self._hand_out(one.next())
        else:
            again = ""
            outcome.save(Path(one.order.runs), one.order.job)  # the node may not have come to it
        tell(self._console, one.said(orders), outcome, again)

    def _outcome(self, handle: Any) -> Outcome:
        errors = self._ray.exceptions
        try:
            return Outcome(**self._ray.get(handle))
        except errors.RayTaskError as error:
            lost = isinstance(error.cause, Interrupted)
            message = f"{type(error.cause).__name__}: {_one_line(error.cause)}"
            return Outcome(status="killed" if lost else "failed", message=message)
        except errors.RayError as error:
            message = f"its node or the Ray worker on it was lost ({type(error).__name__})"
            return Outcome(status="killed", message=message)

    def _cancel(self) -> None:
        """Stop what is on its way, and give what runs the time to save its step."""
        handles = list(self._at_work)
        for handle in handles:
            self._ray.cancel(handle)
        if handles:
            self._ray.wait(handles, num_returns=len(handles), timeout=STOPPING_SECONDS)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def carry_out(path: str, folder: str, threads: int) -> dict[str, Any]:
    """Do one run on the node where this is called, and write how it ended.

    Args:
        path: of the order, absolute.
        folder: that relative paths of the comparison begin at.
        threads: of PyTorch in the run's process.

    Returns:
        The fields of the outcome.

    Raises:
        Interrupted: the node is asked to stop; the run saved its step.
    """
    if not Path(path).is_file():
        message = (
            f"node {socket.gethostname()} does not see {path}: all nodes must share the folder"
        )
        return dataclasses.asdict(Outcome(status="failed", message=message))
    if Path(folder).is_dir():
        os.chdir(folder)  # this process of Ray's does one task at a time
    os.environ["OMP_NUM_THREADS"] = str(threads)
    order = Order.load(Path(path))
    outcome = run_worker(order)
    outcome.save(Path(order.runs), order.job)
    return dataclasses.asdict(outcome)


def with_checkpoints(order: Order) -> Order:
    """Return an order that saves its state after every quarter of its steps, if not told when.

    An epoch, the usual distance, is often longer than a run of a comparison.
    """
    training = order.recipe["training"]
    every = training["checkpoint_every"] or max(training["steps"] // CHECKPOINTS, 1)
    recipe = {**order.recipe, "training": {**training, "checkpoint_every": every}}
    return dataclasses.replace(order, recipe=recipe)


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    """Connect this process to a cluster, or start one; one that a program has joined stays."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report to its makers
    import ray

    if ray.is_initialized():
        if address:
            raise InputError(f"address {address!r} is given, and this process is in a Ray cluster")
        yield ray
        return
    with _signals_kept():
        options = {"address": address} if address else STARTED_HERE
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"no Ray cluster at {address!r}: {_one_line(error)}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Undo at the end that Ray answers SIGTERM itself."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)

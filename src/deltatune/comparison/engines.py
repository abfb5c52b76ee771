"""How the runs of a comparison are carried out: each in a process of its own, in turn or spread."""

from __future__ import annotations

import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from deltatune.comparison.jobs import Outcome
from deltatune.comparison.worker import STOPPING_SECONDS, Order, worker_command
from deltatune.errors import InputError, Interrupted, unknown_name

__all__ = [
    "ENGINES",
    "Engine",
    "engine_named",
    "interrupted",
    "make_ready",
    "one_after_another",
    "run_worker",
    "tell",
]

Engine = Callable[[Sequence[Order], Console], None]
NO_MEMORY = ("MemoryError", "not enough memory", "can't allocate memory", "out of memory")
POLL_SECONDS = 0.2


def one_after_another(orders: Sequence[Order], console: Console) -> None:
    """Carry out runs in turn, and write how each ended beside its folder.

    Raises:
        Interrupted: this process was asked to stop; the run at hand saved its step.
    """
    for i, order in enumerate(orders):
        said = f"run {i + 1} of {len(orders)}: {order.job.name}"
        with console.status(said):
            outcome = run_worker(order)
        outcome.save(Path(order.runs), order.job)
        tell(console, said, outcome)


def tell(console: Console, said: str, outcome: Outcome, more: str = "") -> None:
    """Print how a run ended."""
    ended = outcome.status if not outcome.message else f"{outcome.status}: {outcome.message}"
    console.print(f"{said}: {ended}{more}", highlight=False, markup=False)


def make_ready(order: Order) -> None:
    """Write an order, and put away what is left of another run under the same name.

    A final run bears the name of its recipe and seed. If a trial that had failed is made up for,
    another learning rate may be the best, and what was trained at the former one is not this run.
    """
    (Path(order.runs) / f"{order.job.name}.json").unlink(missing_ok=True)
    if order.path.is_file() and not order.job.is_the_one_in(order.path):
        _set_aside(order.folder.path)
    order.save()


def _set_aside(folder: Path) -> None:
    names = (folder.with_name(f"{folder.name}.former-{i}") for i in itertools.count(1))
    if folder.exists():
        folder.rename(next(name for name in names if not name.exists()))


def run_worker(order: Order) -> Outcome:
    """Carry out one run in a process of its own; whatever happens to it is an outcome.

    Raises:
        Interrupted: this process was asked to stop, and so was the run.
    """
    make_ready(order)
    with order.log.open("ab") as log:
        begins = log.tell()  # what an earlier try said is no reason of this one
        process = subprocess.Popen(
            worker_command(order),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal must reach it once, through us
        )
        code = _waited_for(process)
    written = Outcome.of(Path(order.runs), order.job)
    if code == 0 and written.status != "waiting":
        return written
    if code < 0:
        return Outcome(status="killed", message=_killed(signal.Signals(-code)))
    message = _last_line(order.log, begins)
    memory = any(words in message for words in NO_MEMORY)
    return Outcome(status="out of memory" if memory else "failed", message=message)


def _killed(number: signal.Signals) -> str:
    why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    return f"the process was ended by {number.name}{why}"


def _waited_for(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; if this one is asked to stop, ask it too and let it save its step."""
    with _stoppable() as ignore_signals:
        try:
            # Not `wait`: what Ray does to cancel a task does not wake a process from a system call.
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
            return process.returncode
        finally:
            ignore_signals()
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOPPING_SECONDS)
    except subprocess.TimeoutExpired:  # nothing is lost but the steps since the last checkpoint
        process.kill()
        process.wait()


def interrupted(number: int) -> Interrupted:
    """Return the error for a comparison that a signal has stopped."""
    return Interrupted(
        f"asked to stop by {signal.Signals(number).name}: what is done is saved; call the same "
        f"command again to go on"
    )


@contextmanager
def _stoppable() -> Iterator[Callable[[], None]]:
    """Within the block being asked to stop raises `Interrupted`.

    Yields:
        Call it before cleaning up: from then on being asked again does nothing.
    """

    def stop(number: int, frame: object) -> None:
        raise interrupted(number)

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    is_main = threading.current_thread() is threading.main_thread()  # else nothing is delivered
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield ignore
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _last_line(log: Path, begins: int) -> str:
    with log.open("rb") as file:
        file.seek(begins)
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _here(address: str) -> Engine:
    if address:
        raise InputError(
            f"address {address!r} is of no use to engine 'local', which runs here: leave it out, "
            f"or choose engine 'ray'"
        )
    return one_after_another


def _over_ray(address: str) -> Engine:
    from deltatune.comparison.ray_engine import RayEngine  # which needs this module

    return RayEngine(address=address)


ENGINES: dict[str, Callable[[str], Engine]] = {"local": _here, "ray": _over_ray}


def engine_named(engine: str | Engine, address: str = "") -> Engine:
    """Return an engine.

    Args:
        engine: one of `ENGINES`, or one of the caller's own, which is returned as it is.
        address: of a cluster, for an engine that works on one.

    Raises:
        InputError: no such engine, an address that it does not take, or it is not installed.
    """
    if not isinstance(engine, str):
        if address:
            raise InputError(f"address {address!r} is of no use to an engine of your own")
        return engine
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    return ENGINES[engine](address)

"""How the runs of a comparison are carried out: one after another, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from deltatune.comparison.jobs import Outcome
from deltatune.comparison.worker import Order
from deltatune.errors import Interrupted, unknown_name

__all__ = ["ENGINES", "Engine", "engine_named", "one_after_another", "run_worker"]

Engine = Callable[[Sequence[Order], Console], None]
NO_MEMORY = ("MemoryError", "not enough memory", "can't allocate memory", "out of memory")
STOPPING_SECONDS = 120  # for a run to save the step at which it was stopped


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
        ended = outcome.status if not outcome.message else f"{outcome.status}: {outcome.message}"
        console.print(f"{said}: {ended}", highlight=False, markup=False)


def run_worker(order: Order) -> Outcome:
    """Carry out one run in a process of its own; whatever happens to it is an outcome.

    Raises:
        Interrupted: this process was asked to stop, and so was the run.
    """
    (Path(order.runs) / f"{order.job.name}.json").unlink(missing_ok=True)
    order.save()
    with order.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deltatune.comparison.worker", str(order.path)],
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
    message = _last_line(order.log)
    memory = any(words in message for words in NO_MEMORY)
    return Outcome(status="out of memory" if memory else "failed", message=message)


def _killed(number: signal.Signals) -> str:
    why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    return f"the process was ended by {number.name}{why}"


def _waited_for(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; if this one is asked to stop, ask it too and let it save its step."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted(
            f"asked to stop by {signal.Signals(number).name}: what is done is saved; call the "
            f"same command again to go on"
        )

    is_main = threading.current_thread() is threading.main_thread()  # else nothing is delivered
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        return process.wait()
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        if process.poll() is None:
            process.terminate()
            process.wait(STOPPING_SECONDS)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


ENGINES: dict[str, Engine] = {"local": one_after_another}


def engine_named(name: str) -> Engine:
    """Return an engine.

    Raises:
        InputError: no such engine.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    return ENGINES[name]

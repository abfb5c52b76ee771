"""A file that one process at a time holds, and that the system frees when the process ends."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deltatune.errors import InputError

if sys.platform != "win32":
    import fcntl

__all__ = ["held", "locks_work"]

POLL_SECONDS = 0.2


def locks_work(folder: Path) -> bool:
    """Tell whether files in an existing folder can be locked; some shared file systems refuse."""
    probe = folder / f".lock-{os.getpid()}.probe"
    try:
        with probe.open("w") as file:
            _lock(file)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return sys.platform != "win32"


@contextmanager
def held(path: Path, what: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock file within the block; it is removed at the end.

    The lock is the system's (`flock`): one that a dead process has left holds nobody up, however
    the process died. The file names the holder for the message alone. Where `locks_work` is false
    this does nothing.

    Args:
        path: the file, in an existing folder.
        what: is worked on, for the message.
        wait_seconds: how long to wait for another holder.

    Raises:
        InputError: another process holds it.
    """
    if not locks_work(path.parent):
        yield
        return
    file = _taken(path, what, time.monotonic() + wait_seconds)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is freed: afterwards it might be another's
        file.close()


def _taken(path: Path, what: str, deadline: float) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            if time.monotonic() >= deadline:
                raise InputError(
                    f"{what} is being worked on by {holder}: wait until that ends, or stop it"
                ) from None
            time.sleep(POLL_SECONDS)
            continue
        if _is_at(path, file):
            file.truncate(0)
            file.write(json.dumps({"process": os.getpid(), "machine": platform.node()}))
            file.flush()
            return file
        file.close()  # its holder removed it between our opening and our locking


def _lock(file: IO[str]) -> None:
    """Take the lock or raise `BlockingIOError`; another error where there are none."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        record = json.loads(file.read())
    except ValueError:  # it is just being written
        return "another process"
    where = "" if record["machine"] == platform.node() else f" on {record['machine']}"
    return f"process {record['process']}{where}"

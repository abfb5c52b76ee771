"""A lock holds others up while its process lives, and no longer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from deltatune import file_lock
from deltatune.errors import InputError
from deltatune.file_lock import held, locks_work

HOLD = """
import sys, time
from pathlib import Path
from deltatune.file_lock import held
with held(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_is_refused_while_it_is_held_and_removed_afterwards(tmp_path):
    path = tmp_path / "work.lock"
    with held(path, "output 'out'"):
        message = f"output 'out' is being worked on by process {os.getpid()}: wait until that ends"
        with pytest.raises(InputError, match=message), held(path, "output 'out'"):
            pass
        assert path.exists()
    assert not list(tmp_path.iterdir())
    with held(path, "it"):
        pass


def test_lock_of_a_process_that_was_killed_holds_nobody_up(tmp_path):
    path = tmp_path / "work.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"by process {other.pid}:"), held(path, "it"):
            pass
        other.kill()
    assert path.exists()
    with held(path, "it"):
        pass
    assert not path.exists()


def test_lock_is_waited_for(tmp_path):
    path = tmp_path / "work.lock"
    order = []

    def other() -> None:
        with held(path, "it", wait_seconds=10):
            order.append("second")

    with held(path, "it"):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_told_and_holds_nobody_up(tmp_path, monkeypatch):
    assert locks_work(tmp_path)

    def refuse(file: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(file_lock, "_lock", refuse)
    assert not locks_work(tmp_path)
    with held(tmp_path / "work.lock", "it"), held(tmp_path / "work.lock", "it"):
        pass
    assert not list(tmp_path.iterdir())

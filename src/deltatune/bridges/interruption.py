"""Asking a run to stop: a signal is noted, and acted on when the optimizer step is done."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interruption"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Notes the first SIGTERM or SIGINT within a `with`; the second acts as it would without us.

    Python delivers signals to the main thread only, so in another one nothing is taken over.
    """

    def __init__(self) -> None:
        """Take over nothing yet."""
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._give_back()
            signal.raise_signal(number)
            return
        self.received = signal.Signals(number)

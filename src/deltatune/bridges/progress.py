"""What a run shows and records while it trains: a line on the terminal, a row per step on disk."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback

from deltatune.comparison.costs import CostMeter

__all__ = ["Progress"]


class Progress(TrainerCallback):
    """Shows step, loss, tokens per second and time left; appends every step to `metrics.jsonl`.

    Off a terminal it prints about ten plain lines instead of a moving bar.
    """

    def __init__(self, console: Console, metrics: Path, meter: CostMeter) -> None:
        """Show on `console`, record in `metrics` what a step gave, and what `meter` saw it cost."""
        self.console = console
        self.metrics = metrics
        self.meter = meter
        self.bar = Bar(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._file: TextIO | None = None
        self._task: Any = None
        self._clock = self._began = 0.0
        self._first_step = 0
        self._tokens = 0
        self._rate = 0.0
        self._rates: dict[str, float] = {}

    def __enter__(self) -> Progress:
        self._file = self.metrics.open("a", encoding="utf-8")
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if self._file is not None:
            self._file.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar at the step that training starts from."""
        self._task = self.bar.add_task(
            "training", total=state.max_steps, completed=state.global_step, state=""
        )
        self._clock, self._tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        self._began, self._first_step = self._clock, state.global_step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the rates of this step: when it is logged, the schedule stands at the next one."""
        self._rates = _rates(kwargs.get("optimizer"))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record a step and move the bar."""
        logs: dict[str, float] = kwargs.get("logs") or {}
        if "loss" not in logs or self._file is None:
            return
        self._count(int(state.num_input_tokens_seen))
        row = {
            "step": state.global_step,
            "epoch": logs.get("epoch"),
            "loss": logs["loss"],
            "gradient_norm": logs.get("grad_norm"),
            "learning_rates": self._rates,
            "tokens": int(state.num_input_tokens_seen),
            **self.meter.last_step(),
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._show(state, logs["loss"])

    def _count(self, tokens: int) -> None:
        now = time.perf_counter()
        rate = (tokens - self._tokens) / max(now - self._clock, 1e-9)
        # A moving mean: single steps differ by the length of their texts.
        self._rate = rate if self._rate == 0.0 else 0.9 * self._rate + 0.1 * rate
        self._clock, self._tokens = now, tokens

    def _show(self, state: Any, loss: float) -> None:
        text = f"loss {loss:.4f}  {self._rate:,.0f} tokens/s"
        self.bar.update(self._task, completed=state.global_step, state=text)
        stride = max(state.max_steps // 10, 1)
        if not self.console.is_terminal and state.global_step % stride == 0:
            left = self._seconds_left(state.global_step, state.max_steps)
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  {text}  {left:.0f} s left",
                highlight=False,
            )

    def _seconds_left(self, step: int, steps: int) -> float:
        """Estimate by the mean step of this process."""
        done = step - self._first_step
        return (time.perf_counter() - self._began) / max(done, 1) * (steps - step)


def _rates(optimizer: Any) -> dict[str, float]:
    """Return each group's learning rate by its label: a single number would hide the split."""
    groups = getattr(optimizer, "param_groups", ())
    return {str(group.get("label", i)): float(group["lr"]) for i, group in enumerate(groups)}

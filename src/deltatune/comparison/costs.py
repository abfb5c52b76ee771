"""What a run costs, measured: time, memory, states and FLOPs."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deltatune.comparison.cost_prediction import predicted_costs
from deltatune.training_mode import mode_kept

__all__ = [
    "CostMeter",
    "count_flops",
    "flop_counter",
    "optimizer_bytes",
    "predicted_costs",
    "synchronize",
    "trying",
]

SAMPLE_SECONDS = 0.05
WARM_UP_STEPS = 3


class CostMeter:
    """Time, tokens and memory of a run, from the loaded base on.

    On a CPU the memory is the process's resident set, sampled by a thread while steps run, so it
    counts everything the process holds; on CUDA it is what the allocator handed out.
    """

    def __init__(self, device: torch.device) -> None:
        """Remember the memory of the loaded base."""
        self.device = device
        self.steps: list[float] = []
        self.tokens: list[int] = []
        self.padded_tokens: list[int] = []
        self._began = 0.0
        self._process = psutil.Process()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._base_bytes = self._now()
        self._peak_bytes = self._base_bytes
        self._training = threading.Event()

    def _now(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        return int(self._process.memory_info().rss)

    def _sample(self) -> None:
        while self._training.is_set():
            self._peak_bytes = max(self._peak_bytes, self._now())
            time.sleep(SAMPLE_SECONDS)

    def __enter__(self) -> CostMeter:
        """Sample memory from here on."""
        self._training.set()
        if self.device.type != "cuda":
            threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._training.clear()
        self._peak_bytes = max(self._peak_bytes, self._now())
        if self.device.type == "cuda":
            self._peak_bytes = max(
                self._peak_bytes, int(torch.cuda.max_memory_allocated(self.device))
            )

    def step_started(self) -> None:
        """Start the clock of an optimizer step."""
        synchronize(self.device)
        self._began = time.perf_counter()

    def step_finished(self, tokens: int, *, padded_tokens: int) -> None:
        """Stop the clock.

        Args:
            tokens: without padding.
            padded_tokens: with padding.
        """
        synchronize(self.device)
        self.steps.append(time.perf_counter() - self._began)
        self.tokens.append(tokens)
        self.padded_tokens.append(padded_tokens)

    def last_step(self) -> dict[str, float]:
        """Return time and tokens of the last step, for a record from which to continue."""
        return {
            "seconds": self.steps[-1],
            "step_tokens": self.tokens[-1],
            "step_padded_tokens": self.padded_tokens[-1],
        }

    def continue_from(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count the steps that earlier processes of the same run took, one `last_step` each."""
        for row in rows:
            self.steps.append(float(row["seconds"]))
            self.tokens.append(int(row["step_tokens"]))
            self.padded_tokens.append(int(row["step_padded_tokens"]))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, units in their names.

        The median step leaves out the first `WARM_UP_STEPS` where at least twice as many ran;
        `wall_seconds` is the sum over all steps. The peak of memory is that of this process.
        """
        timed = self.steps[WARM_UP_STEPS:] if len(self.steps) > 2 * WARM_UP_STEPS else self.steps
        wall = sum(self.steps)
        return {
            "optimizer_steps": len(self.steps),
            "wall_seconds": wall,
            "median_step_seconds": statistics.median(timed) if timed else 0.0,
            "tokens": sum(self.tokens),
            "padded_tokens": sum(self.padded_tokens),
            "tokens_per_second": sum(self.tokens) / wall if wall else 0.0,
            "peak_memory_above_base_bytes": self._peak_bytes - self._base_bytes,
            "memory_counts": "allocated" if self.device.type == "cuda" else "resident set",
        }


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    # A kernel that was only queued has cost no time yet.
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def count_flops(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
) -> int:
    """Count the FLOPs of one forward and backward pass, a multiply-add as 2.

    Matrix products, convolutions and attention are counted, elementwise work is not. Weights,
    buffers, gradients, modes and random states are afterwards as they were.

    Args:
        model: the model, which is put into training mode for the pass.
        inputs: of the model.
        loss: from model and inputs to `()`.
    """
    counter = flop_counter()
    with trying(model), counter:
        loss(model, inputs).backward()
    return int(counter.get_total_flops())


@contextmanager
def trying(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode for a block in which forward and backward passes run.

    Weights are not to be changed; buffers, gradients, modes and random states are afterwards as
    they were.
    """
    parameters = list(model.parameters())
    devices = {p.device.index or 0 for p in parameters if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), _as_before(model):
        for parameter in parameters:
            parameter.grad = None  # a gradient that is there already would be added to in place
        model.train()
        yield


def flop_counter() -> FlopCounterMode:
    """Return a counter of FLOPs that knows the products which PyTorch's own leaves out."""
    return FlopCounterMode(display=False, custom_mapping=_FORMULAS)


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with mode_kept(model):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    # Scores and weighted values; with grouped heads each query head still has products of its own.
    batch, heads, length, width = query  # (batch, n_heads, seq, d_head)
    return 2 * 2 * batch * heads * length * key[-2] * width


def _attention_backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], *_: Any, **__: Any
) -> int:
    # Five products against two: the kernel forms the scores again.
    return _attention(query, key) * 5 // 2


def _product_in_place(
    target: Sequence[int], left: Sequence[int], right: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * left[0] * left[1] * right[1]


# PyTorch's counter gives the CPU's fused attention as 0, and that of GPUs in some releases not for
# grouped heads; and products that accumulate in place as 0: all of them are counted here.
_KERNELS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_FORMULAS: dict[Any, Any] = {torch.ops.aten.addmm_: _product_in_place} | {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{direction}"): formula
    for kernel in _KERNELS
    for direction, formula in (("", _attention), ("_backward", _attention_backward))
}


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all state tensors of an optimizer, shared ones once."""
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    tensors = {
        (tensor.device, tensor.data_ptr()): tensor.numel() * tensor.element_size()
        for state in inner.state.values()
        for tensor in _tensors_in(state)
    }
    return sum(tensors.values())


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a state, also those that objects in it hold."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors_in(one)
    elif hasattr(value, "__dict__"):
        yield from _tensors_in(vars(value))

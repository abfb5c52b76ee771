"""What a run costs: time, memory, states and FLOPs, each predicted where a formula knows it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deltatune.bridges.names import trained_parameters
from deltatune.sites import Site, Sites
from deltatune.updates.update import TrainedParameter

__all__ = ["CostMeter", "count_flops", "optimizer_bytes", "predicted_costs"]

SAMPLE_SECONDS = 0.05
WARM_UP_STEPS = 3
STATES_OF = {
    "adamw": 2,
    "adam": 2,
    "adafactor": 1,
    "sgd": 0,
    "lion": 1,
}  # tensors like the parameter


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
        self._synchronize()
        self._began = time.perf_counter()

    def step_finished(self, tokens: int, *, padded_tokens: int) -> None:
        """Stop the clock.

        Args:
            tokens: without padding.
            padded_tokens: with padding.
        """
        self._synchronize()
        self.steps.append(time.perf_counter() - self._began)
        self.tokens.append(tokens)
        self.padded_tokens.append(padded_tokens)

    def _synchronize(self) -> None:
        # A kernel that was only queued has cost no time yet.
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, units in their names.

        The median step leaves out the first `WARM_UP_STEPS` where at least twice as many ran;
        `wall_seconds` is the sum over all steps of this process.
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


def count_flops(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
) -> int:
    """Count the FLOPs of one forward and backward pass, a multiply-add as 2.

    Matrix products, convolutions and attention are counted, elementwise work is not. Weights,
    random states and gradients are as they were afterwards.

    Args:
        model: the model, which is put into training mode for the pass.
        inputs: of the model.
        loss: from model and inputs to `()`.
    """
    was_training = model.training
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"]
    kept = {name: p.grad for name, p in model.named_parameters()}
    counter = FlopCounterMode(display=False)
    try:
        with torch.random.fork_rng(devices=sorted({d.index or 0 for d in devices})), counter:
            loss(model.train(), inputs).backward()
    finally:
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.grad = kept[name]
    return int(counter.get_total_flops())


def predicted_costs(
    model: nn.Module,
    sites: Sites,
    *,
    sequences: int,
    sequence_length: int,
    optimizer: str,
) -> dict[str, Any]:
    """Predict the cost of one micro-batch from shapes alone.

    Per token each projection of shape (out, in) costs 2 out in forward, as much again for the
    gradient of its input where the backward pass reaches it (from the head down to the lowest layer
    that trains), and as much again for its own gradient if it trains. A small factor of an adapter
    counts like a projection that trains. Attention costs 4 length width forward and twice that
    backward.

    Args:
        model: prepared for training.
        sites: of its base.
        sequences: in the micro-batch.
        sequence_length: in tokens, padding included.
        optimizer: name; tells how many states a parameter has.
    """
    trained = trained_parameters(model, sites)
    tokens = sequences * sequence_length
    lowest = min((p.layer for p in trained if p.layer is not None), default=sites.number_of_layers)
    flops = _projection_flops(sites, trained, tokens, sequences, lowest)
    flops += _adapter_flops(trained, tokens)
    flops += _attention_flops(sites, sequences, sequence_length, lowest)
    scalars = sum(_size(p) for p in trained)
    states = next((n for name, n in STATES_OF.items() if optimizer.startswith(name)), 2)
    return {
        "micro_batch_flops": flops,
        "optimizer_bytes": 4 * states * scalars,
        "trained_bytes": 4 * scalars,
    }


MATMUL_ROLES = ("query", "key", "value", "output", "gate", "up", "down", "head")


def _size(parameter: TrainedParameter) -> int:
    size = 1
    for n in parameter.shape:
        size *= n
    return size


def _projection_flops(
    sites: Sites, trained: list[TrainedParameter], tokens: int, sequences: int, lowest: int
) -> int:
    whole = {p.canonical for p in trained if p.part_role == "weight" and len(p.shape) == 2}
    total = 0
    for site in sites.values():
        if site.role not in MATMUL_ROLES:
            continue
        trains = site.weight in whole
        # The first layer that trains needs no gradient of what enters its trained projections.
        reached = site.layer is None or site.layer > lowest
        reached = reached or (site.layer == lowest and site.role not in ("query", "key", "value"))
        total += (
            _rows(site, tokens, sequences)
            * 2
            * site.out_features
            * site.in_features
            * (1 + int(reached) + int(trains))
        )
    return total


def _rows(site: Site, tokens: int, sequences: int) -> int:
    # A classification head sees one vector per sequence, an output head every token.
    is_classifier = site.role == "head" and not site.module.endswith("lm_head")
    return sequences if is_classifier else tokens


def _adapter_flops(trained: list[TrainedParameter], tokens: int) -> int:
    return sum(6 * tokens * _size(p) for p in trained if p.part_role in ("down", "up"))


def _attention_flops(sites: Sites, sequences: int, length: int, lowest: int) -> int:
    total = 0
    for site in sites.with_roles("query") if any(s.role == "query" for s in sites.values()) else ():
        passes = 3 if site.layer is None or site.layer >= lowest else 1
        total += passes * 4 * sequences * length * length * site.out_features
    return total


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all state tensors of an optimizer."""
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    return sum(
        value.numel() * value.element_size()
        for state in inner.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )

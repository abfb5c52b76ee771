"""How much memory a training step will need above the loaded base, before anything is trained."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deltatune.bridges.names import trained_parameters
from deltatune.comparison.micro_batch import heaviest_rows, tried
from deltatune.comparison.state_bytes import predicted_state_bytes
from deltatune.plan import Plan

__all__ = ["activation_bytes", "predicted_memory_bytes", "training_bytes"]


def predicted_memory_bytes(plan: Plan) -> int | None:
    """Predict the bytes above the loaded base at the peak of a training step.

        values that train and are no part of the base + their gradients + the optimizer's state
        + what the heaviest micro-batch keeps for its backward pass

    The sum of the tensors that outlive the operation that made them. Left out is what an operation
    needs only while it runs, which was a tenth more for `nano`, and what a process needs beside
    tensors (code that is loaded late, memory that its allocator keeps), which the resident set of a
    CPU counts too: there the prediction is a floor. Accumulation changes nothing: micro-batches
    come one after the other.

    Args:
        plan: of the run.

    Returns:
        Bytes, or None for an optimizer whose state is not known by formula.
    """
    staying = training_bytes(plan)
    return None if staying is None else staying + activation_bytes(plan)


def training_bytes(plan: Plan) -> int | None:
    """Return the bytes of trained values (where the base has none), gradients and optimizer state.

    Adam without a separate base takes 16 bytes for each value that trains: 4 for itself, 4 for its
    gradient, 8 for two moments. Where base weights train themselves they are loaded already.

    Args:
        plan: of the run.

    Returns:
        Bytes, or None for an optimizer whose state is not known by formula.
    """
    optimizer = plan.recipe.optimizer
    trained = trained_parameters(plan.model, plan.sites)
    states = predicted_state_bytes(optimizer.name, trained, optimizer.options)
    if states is None:
        return None
    values = sum(
        parameter.numel() * parameter.element_size()
        for parameter in plan.model.parameters()
        if parameter.requires_grad
    )
    return (values if plan.trains_base else 2 * values) + states


def activation_bytes(plan: Plan) -> int:
    """Count what the heaviest micro-batch of the first epoch keeps for its backward pass.

    It goes through the model once, forward and backward; the most bytes of different storages that
    autograd holds at once are counted, weights and buffers left out.

    Args:
        plan: of the run.
    """
    with tried(plan, heaviest_rows(plan)) as loss:
        return kept_bytes(plan.model, loss)


def kept_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Return the most bytes that autograd keeps at once while a loss goes forward and backward.

    Args:
        model: whose parameters and buffers do not count.
        loss: gives `()`.
    """
    ledger = _Ledger(model)
    with torch.autograd.graph.saved_tensors_hooks(ledger.keep, lambda kept: kept.tensor):
        loss().backward()
    return ledger.most


class _Kept:
    """One tensor in an autograd graph, for as long as the graph needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Ledger:
    """The bytes of all storages that are kept, now and at most; each counts once."""

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.times: Counter[int] = Counter()  # of each storage how many kept tensors lie in it
        self.now = self.most = 0

    def keep(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self.own:
            self.times[address] += 1
            if self.times[address] == 1:
                self.now += size
                self.most = max(self.most, self.now)
            weakref.finalize(kept, self._drop, address, size)
        return kept

    def _drop(self, address: int, size: int) -> None:
        self.times[address] -= 1
        if not self.times[address]:
            self.now -= size

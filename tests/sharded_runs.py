"""Runs in two gloo processes on the CPU in which the parts of a delta take turns, also sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from deltatune.bridges.callback import DeltaCallback
from deltatune.deltas.cosine import CosineDelta, CosineSpectrum
from deltatune.deltas.low_rank import LowRank
from deltatune.recipe import Recipe
from deltatune.updates.alternate import Alternate, Phase
from tests.models import tiny
from tests.training import token_rows, trainer_of

ROWS = token_rows(16)
TURNS = Alternate(
    phases=(
        Phase(parts=("up",), steps=2),
        Phase(parts=("down",), steps=1, weight_decay=0.5, clipped_apart=True),
    ),
    until=5,
    then=("up", "down"),
)
ORDER = [["up"], ["up"], ["down"], ["up"], ["up"], ["down", "up"]]
CLIPPED: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.05}
SPECTRAL_STEPS: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 3.0, "max_grad_norm": 0.5}
SHARDED: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


# Three rows of down over two processes: pieces of different sizes.
BY_TURNS = Recipe(delta=LowRank(rank=3), update=TURNS)
# Values that are not zero, so that locations have a gradient from their first turn on.
SPECTRAL = Recipe(
    delta=CosineSpectrum(coefficients=9, values="normal", scale=0.3),
    update=Alternate(
        phases=(
            Phase(parts=("coefficient",), steps=1),
            Phase(parts=("location",), steps=2, clipped_apart=True),
        ),
        until=5,
        then=("coefficient",),
    ),
)


def trainer_in(folder: Path, recipe: Recipe = BY_TURNS, **changes: Any) -> Any:
    """Return a trainer of a delta whose parts take turns."""
    model = recipe.prepare(tiny("llama", "causal_lm"))
    settings = {"max_steps": len(ORDER), "num_train_epochs": 9, "weight_decay": 0.1, **changes}
    sites: Any = model.deltatune_sites
    trainer = trainer_of(model, sites, folder, rows=ROWS, update=recipe.update, **settings)
    trainer.add_callback(DeltaCallback(trainer, update=recipe.update, sites=sites))
    return trainer


def sharded(trainer: Any) -> Any:
    """Let accelerate shard on a CPU, which it does on accelerators only; the sharding can."""
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
    return trainer


def trained(trainer: Any) -> dict[str, Any]:
    """Return the delta's parameters, as they lie in this process."""
    named = trainer.model.named_parameters()
    return {name: parameter.detach() for name, parameter in named if "delta_" in name}


class Watch(TrainerCallback):
    """Notes which parts have a gradient, and which pieces of values and moments move, by step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.graded: list[list[str]] = []
        self.moved: list[list[str]] = []
        self.pieces: dict[str, Tensor] = {}
        self.is_sharded = False

    def _parameters(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.trainer.model.named_parameters() if "delta_" in n}

    def _pieces(self) -> dict[str, Tensor]:
        pieces = {}
        for name, parameter in self._parameters().items():
            state = self.trainer.optimizer.state.get(parameter, {})
            own = {"value": parameter.detach(), **state}
            for key, tensor in own.items():
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                pieces[f"{name}:{key}"] = local.clone()
        return pieces

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.pieces = self._pieces()
        self.is_sharded = all(isinstance(p, DTensor) for p in self._parameters().values())

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        found = {n for n, p in self._parameters().items() if p.grad is not None}
        self.graded.append(sorted({name.rpartition(".")[2] for name in found}))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        before, after = self.pieces, self._pieces()
        moved = {n for n, v in after.items() if n not in before or not torch.equal(v, before[n])}
        self.moved.append(sorted({name.partition(":")[0].rpartition(".")[2] for name in moved}))


def watch_turns(rank: int, folder: Path) -> None:
    """Note who has gradients and who moves in each step, each process with a whole copy."""
    _watched(trainer_in(folder, gradient_accumulation_steps=2), folder / f"{rank}.pt")


def watch_pieces(rank: int, folder: Path) -> None:
    """Note the same of a sharded run."""
    _watched(sharded(trainer_in(folder, **SHARDED)), folder / f"{rank}.pt")


def _watched(trainer: Any, file: Path) -> None:
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    torch.save({"is_sharded": watch.is_sharded, "graded": watch.graded, "moved": watch.moved}, file)


def clip_pieces(rank: int, folder: Path) -> None:
    """Train by the plain step rule, with the gradients of two sets clipped."""
    trainer = sharded(trainer_in(folder, gradient_accumulation_steps=2, **CLIPPED, **SHARDED))
    trainer.train()
    whole = {name: piece.full_tensor() for name, piece in trained(trainer).items()}
    torch.save({"trained": whole}, folder / f"{rank}.pt")


def train_spectral(rank: int, folder: Path) -> None:
    """Train a cosine delta, each process with a whole copy."""
    trainer = trainer_in(folder, SPECTRAL, **SPECTRAL_STEPS)
    trainer.train()
    torch.save({"trained": trained(trainer)}, folder / f"{rank}.pt")


def train_spectral_pieces(rank: int, folder: Path) -> None:
    """Train a cosine delta in pieces."""
    trainer = sharded(trainer_in(folder, SPECTRAL, **SPECTRAL_STEPS, **SHARDED))
    trainer.train()
    deltas = [one for one in trainer.model.modules() if isinstance(one, CosineDelta)]
    cells = [one.cells() for one in deltas]
    figures = [one.figures() for one in deltas]
    set_model_state_dict(trainer.model, get_model_state_dict(trainer.model))
    whole = {name: piece.full_tensor() for name, piece in trained(trainer).items()}
    torch.save({"trained": whole, "cells": cells, "figures": figures}, folder / f"{rank}.pt")

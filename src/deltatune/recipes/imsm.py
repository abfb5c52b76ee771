"""IMSM: the frozen and the tuned model both see every token, and a gate mixes their memories."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from deltatune.blocks.siamese import Siamese
from deltatune.errors import InputError
from deltatune.parts import Source, declare
from deltatune.recipe import Recipe, hosted
from deltatune.updates.chain import Chain
from deltatune.updates.ratios import Ratios

__all__ = ["imsm"]


@declare(
    "recipes",
    "imsm",
    source=Source(
        authors="Song et al.",
        year=2024,
        title="Interweaving Memories of a Siamese Large Language Model",
        arxiv="2412.17383",
        where="section 3, tables 1 and 6",
    ),
)
def imsm(
    host: Any = "lora",
    gate_rank: int = 8,
    gate_learning_rate: float = 1e-3,
    gate_dropout: float = 0.1,
    mode: Literal["query", "no_query", "mean"] = "query",
) -> Recipe:
    """Run the frozen and the tuned model side by side and mix their last hidden states by a gate.

    Args:
        host: any recipe whose delta can be switched off: its name, a mapping of its name and
            parameters, or a `Recipe`.
        gate_rank: of the gate.
        gate_learning_rate: of the gate, whatever the host's is; the published code leaves it at
            the optimizer's default, which is this.
        gate_dropout: in the gate while training; 0 for hosts like (IA)3 in the published code.
        mode: what the gate looks at, see `Siamese`.

    Raises:
        InputError: a host that is none, or a rate that is no finite number above 0.
    """
    if not (math.isfinite(gate_learning_rate) and gate_learning_rate > 0):
        raise InputError(
            f"gate_learning_rate={gate_learning_rate} is not allowed: give a finite number above 0"
        )
    base = hosted(host)
    block = Siamese(rank=gate_rank, gate_dropout=gate_dropout, mode=mode)
    ratio = gate_learning_rate / base.optimizer.learning_rate
    rates = {} if mode == "mean" else {"block.down": ratio, "block.up": ratio}
    return dataclasses.replace(
        base,
        name=f"imsm_{base.name}",
        block=block,
        update=Chain(updates=(Ratios(patterns=rates), base.update)) if rates else base.update,
    )

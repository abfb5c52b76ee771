"""Siamese: every token goes through the frozen and the tuned model, and a gate mixes the two."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltatune.blocks.block import Block, Surroundings
from deltatune.blocks.query import query_of
from deltatune.bridges.body import body_of
from deltatune.bridges.siblings import Siblings
from deltatune.errors import InputError, NotComposable
from deltatune.parts import Source, declare

__all__ = ["Siamese", "SiameseBlock"]

MEMORIES = {"query": 4, "no_query": 2, "mean": 0}  # mode -> vectors that the gate looks at


@dataclass(frozen=True, kw_only=True)
class Siamese:
    """Options of the siamese block.

    Args:
        rank: of the gate, from 1.
        gate_dropout: probability with which the gate's inner values, and what it gives before the
            sigmoid, are dropped while training, in [0, 1).
        mode: what the gate looks at: `query` is both states and both averages over the query,
            `no_query` both states; `mean` has no gate and takes the middle.
        shift: is added before the sigmoid, outside training too: above 0 leans towards the frozen
            memory, below 0 towards the tuned one.
    """

    rank: int = 8
    gate_dropout: float = 0.1
    mode: Literal["query", "no_query", "mean"] = "query"
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(
                f"rank={self.rank} is not allowed: give the gate's rank, an integer from 1, or "
                f"mode=mean for no gate"
            )
        if not 0 <= self.gate_dropout < 1:
            raise InputError(
                f"gate_dropout={self.gate_dropout} is not allowed: give a probability in [0, 1)"
            )
        if not math.isfinite(self.shift):
            raise InputError(f"shift={self.shift} is not allowed: give a finite number")


@declare(
    "blocks",
    "siamese",
    options=Siamese,
    source=Source(
        authors="Song et al.",
        year=2024,
        title="Interweaving Memories of a Siamese Large Language Model",
        arxiv="2412.17383",
        where="equations 2 to 8",
    ),
)
class SiameseBlock(Block):
    """Mix the last hidden states of the frozen and of the tuned model, element by element.

    `h = g * frozen + (1 - g) * tuned`, with `g = sigmoid([q0; frozen; tuned; q1] down up)`, where
    `q0` and `q1` are both models' averages over the query. One copy of the weights serves both
    passes: the delta is switched off for the frozen one, which runs first, in evaluation mode and
    without a graph. The gate computes in float32.

    The query is, in training, all tokens of a document before its first supervised one; in
    generation the prompt; else the whole input. Unlike the published code, which keeps a second
    copy of the model and computes all tokens again for each new one, there is one cache for each
    pass, and layers below the first changed one are computed and cached once.
    """

    Options: ClassVar[type[Any]] = Siamese
    roles: ClassVar[dict[str, str]] = {"down": "gate", "up": "gate"}
    # While both memories are the same the gate has no gradient.
    may_rest: ClassVar[tuple[str, ...]] = ("down", "up")
    why_no_change = "it needs both memories of every token, and no one weight holds two"
    options: Siamese
    down: nn.Parameter | None
    up: nn.Parameter | None

    def __init__(self, options: Siamese, d_model: int, generator: torch.Generator) -> None:
        """Draw the gate as a linear layer draws its weights: uniform within 1 / sqrt(inputs)."""
        super().__init__(options)
        self._labels: Tensor | None = None
        self._prompt: int | None = None  # columns of the prompt while generating
        self._watched: list[Tensor] | None = None
        number = MEMORIES[options.mode]
        self.down = self.up = None
        if number:
            self.down = _drawn(options.rank, number * d_model, generator)
            self.up = _drawn(d_model, options.rank, generator)

    @classmethod
    def made_for(
        cls, options: Siamese, around: Surroundings, generator: torch.Generator
    ) -> SiameseBlock:
        """Make the gate; see `Block`.

        Raises:
            NotComposable: a model that is no decoder, or whose body cannot be found.
        """
        if around.task_type != "CAUSAL_LM":
            raise NotComposable(
                "the block siamese mixes what two passes say of the next token, and this task has "
                "none: give data of prompts and completions, chats or texts"
            )
        return cls(options, body_of(around.model).d_model, generator)

    def install(self, around: Surroundings) -> None:
        """Let the body of the model run twice and give the mixture to the head."""
        body = body_of(around.model)
        Siblings(self, body, around).install()

    @contextlib.contextmanager
    def reading(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Remember where the answers of a batch begin."""
        before, self._labels = self._labels, batch.get("labels")
        try:
            yield
        finally:
            self._labels = before

    @contextlib.contextmanager
    def answering(self, columns: int) -> Iterator[None]:
        """Remember how long the prompts are for the length of a generation."""
        before, self._prompt = self._prompt, columns
        try:
            yield
        finally:
            self._prompt = before

    def query(self, given: Mapping[str, Any], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return which tokens are query, `(batch, seq)` bool, and each one's document, int64."""
        return query_of(given, shape, labels=self._labels, prompt=self._prompt)

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[Tensor]]:
        """Collect the gate of every pass in a block of code, each `(batch, seq, d_model)`."""
        before, self._watched = self._watched, []
        try:
            yield self._watched
        finally:
            self._watched = before

    def mixed(self, frozen: Tensor, tuned: Tensor, averages: Tensor | None) -> Tensor:
        """Return the mixture, `(batch, seq, d_model)` in the dtype of `tuned`.

        Args:
            frozen: `(batch, seq, d_model)`, without a graph.
            tuned: the same of the tuned pass.
            averages: `(batch, 1 or seq, 2, d_model)` float32 of both passes over the query.
        """
        wide = torch.promote_types(tuned.dtype, torch.float32)
        gate = self.gate(frozen, tuned, averages)
        if self._watched is not None:
            self._watched.append(gate.detach().expand(tuned.shape))
        return torch.lerp(tuned.to(wide), frozen.to(wide), gate).to(tuned.dtype)

    def gate(self, frozen: Tensor, tuned: Tensor, averages: Tensor | None) -> Tensor:
        """Return the weight of the frozen memory, at least float32; see `mixed`."""
        wide = torch.promote_types(tuned.dtype, torch.float32)
        if self.down is None or self.up is None:
            return tuned.new_full((), 0.5, dtype=wide)
        states = [frozen.to(wide), tuned.to(wide)]
        if averages is not None:
            states = [averages[:, :, 0], *states, averages[:, :, 1]]
        pieces = self.down.to(wide).chunk(len(states), dim=1)  # each (rank, d_model)
        inner = torch.zeros((), dtype=wide, device=tuned.device)
        for state, piece in zip(states, pieces, strict=True):
            inner = inner + F.linear(state, piece)  # (batch, 1 or seq, rank)
        drop, trains = self.options.gate_dropout, self.training
        outer = F.linear(F.dropout(inner, drop, trains), self.up.to(wide))
        return torch.sigmoid(F.dropout(outer, drop, trains) + self.options.shift)

    @property
    def looks_at_query(self) -> bool:
        """Whether the averages over the query matter."""
        return self.options.mode == "query"


def _drawn(rows: int, columns: int, generator: torch.Generator) -> nn.Parameter:
    values = torch.rand(rows, columns, generator=generator)
    return nn.Parameter((2 * values - 1) / math.sqrt(columns))

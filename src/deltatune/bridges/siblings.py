"""Two passes of one body: the frozen model's and the tuned one's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from deltatune.blocks.query import documents_of
from deltatune.bridges.body import Body
from deltatune.bridges.siamese_cache import SiameseCache
from deltatune.errors import NotComposable
from deltatune.training_mode import evaluating

if TYPE_CHECKING:  # blocks import this module
    from deltatune.blocks.block import Surroundings

__all__ = ["Mixer", "Siblings"]


class Mixer(Protocol):
    """What mixes two passes; see `deltatune.blocks.siamese.SiameseBlock`."""

    @property
    def acts(self) -> bool:
        """Whether there is anything to mix now."""
        ...

    @property
    def looks_at_query(self) -> bool:
        """Whether the averages over the query matter."""
        ...

    def query(self, given: Mapping[str, Any], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return which tokens are query, and each one's document."""
        ...

    def mixed(self, frozen: Tensor, tuned: Tensor, averages: Tensor | None) -> Tensor:
        """Return the mixture of two last hidden states."""
        ...

    def reading(self, batch: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Tell where the answers of a batch begin."""
        ...

    def answering(self, columns: int) -> AbstractContextManager[Any]:
        """Tell how long the prompts are for the length of a generation."""
        ...


class Siblings:
    """Runs a body twice in place of once, the second time with its delta, and mixes what comes.

    Layers below the first changed one run in the frozen pass only.
    """

    def __init__(self, block: Mixer, body: Body, around: Surroundings) -> None:
        """Find what both passes share."""
        self.block = block
        self.body = body
        self.without_delta = around.without_delta
        self.lower = body.layers_below(around.sites, around.changed)
        self._shared: Tensor | None = None  # output of the last shared layer
        self._is_frozen_pass = False
        self._stack = contextlib.ExitStack()

    def install(self) -> None:
        """Put both passes in the place of the body's own."""
        self.original = self.body.module.forward
        module: Any = self.body.module
        module.forward = self.forward
        for layer in self.lower:
            self._share(layer, is_last=layer is self.lower[-1])
        model: Any = self.body.model
        model.register_forward_pre_hook(self._read_labels, with_kwargs=True)
        model.register_forward_hook(self._forget_labels, always_call=True)
        generate = model.generate

        def generating(inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
            prompt = inputs if inputs is not None else kwargs.get("input_ids")
            if prompt is None:
                prompt = kwargs.get("inputs_embeds")
            columns = 0 if prompt is None else prompt.shape[1]
            with self.block.answering(columns):
                return generate(inputs, *args, **kwargs)

        model.generate = generating

    def _read_labels(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Where the model itself computes a loss, its labels say where answers begin."""
        if kwargs.get("labels") is not None:
            self._stack = contextlib.ExitStack()
            self._stack.enter_context(self.block.reading(kwargs))

    def _forget_labels(self, *_: Any) -> None:
        self._stack.close()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the body's output with the mixture as its last hidden state."""
        if not self.block.acts:
            return self.original(*args, **kwargs)
        given = self.body.named(args, kwargs)
        cache = self._cache(given)
        self._shared = None
        self._is_frozen_pass = True
        try:
            with evaluating(self.body.module), self.without_delta():
                frozen = self.original(**given, **_with(cache and cache.frozen))[0]
        finally:
            self._is_frozen_pass = False
        try:
            output = self.original(**given, **_with(cache))
        finally:
            self._shared = None
        tuned = output[0]  # (batch, seq, d_model)
        averages = self._averages(given, cache, frozen, tuned)
        return self.body.with_hidden_states(output, self.block.mixed(frozen, tuned, averages))

    def _cache(self, given: dict[str, Any]) -> SiameseCache | None:
        """Take the cache out of the arguments, and make one for both passes of it."""
        cache = given.pop("past_key_values", None)
        if cache is None and given.get("use_cache"):
            cache = DynamicCache(config=self.body.model.config)
        if cache is None or isinstance(cache, SiameseCache):
            return cache
        if not isinstance(cache, Cache):
            raise NotComposable(
                f"two passes and a cache of type {type(cache).__name__} cannot act together: give "
                f"use_cache=False"
            )
        return SiameseCache(cache, len(self.lower))

    def _averages(
        self, given: Mapping[str, Any], cache: SiameseCache | None, frozen: Tensor, tuned: Tensor
    ) -> Tensor | None:
        """Return both averages over the query of every token, `(batch, 1 or seq, 2, d_model)`."""
        if not self.block.looks_at_query:
            return None
        if cache is not None and cache.averages is not None:
            return cache.averages[:, None]
        wide = torch.promote_types(tuned.dtype, torch.float32)
        both = torch.stack([frozen.to(wide), tuned.to(wide)], dim=2)
        is_query, document = self.block.query(given, tuned.shape[:2])  # type: ignore[arg-type]
        of_document = documents_of(both, is_query, document)  # (documents, 2, d_model)
        averages = of_document[document]
        if cache is not None:
            cache.averages = averages[:, -1].detach()
        return averages

    def _share(self, layer: nn.Module, *, is_last: bool) -> None:
        """Let a layer below the first changed one run in the frozen pass only."""
        original = layer.forward

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._shared is not None:  # the tuned pass
                return self._shared if is_last else hidden_states
            output = original(hidden_states, *args, **kwargs)
            if is_last and self._is_frozen_pass:
                self._shared = output
            return output

        shared: Any = layer
        shared.forward = forward


def _with(cache: Cache | None) -> dict[str, Any]:
    return {} if cache is None else {"past_key_values": cache}

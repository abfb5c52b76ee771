"""Keys and values of two passes over the same tokens, in one object that generation handles."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import Cache

from deltatune.errors import NotComposable

__all__ = ["SiameseCache"]


class SiameseCache(Cache):
    """The cache of the tuned pass, with that of the frozen pass and the averages of the query.

    Layers that both passes share are kept once, in the frozen cache. In their places here stands
    the first layer of their kind that is not shared: there only the length is ever asked.

    Args:
        given: an empty cache, of any kind that grows with the tokens.
        shared: number of layers from the input that both passes share.

    Attributes:
        frozen: the cache of the frozen pass.
        averages: `(batch, 2, d_model)` float32, of both passes over the query; set once.
    """

    def __init__(self, given: Cache, shared: int) -> None:
        """Take over an empty cache.

        Raises:
            NotComposable: it holds tokens that only one model has seen.
        """
        if given.get_seq_length():
            raise NotComposable(
                "the cache holds tokens already, but not what both memories make of them: give the "
                "whole prompt, or a cache that this model has filled"
            )
        if given.offloading:
            raise NotComposable(
                "a cache that is offloaded layer by layer cannot serve two passes: leave it out"
            )
        self.frozen = copy.deepcopy(given)
        self.averages: Tensor | None = None
        self._shared = shared
        super().__init__(
            layers=given.layers if given.layer_class_to_replicate is None else None,
            layer_class_to_replicate=given.layer_class_to_replicate,
        )
        for i in range(shared if self.layers else 0):
            self.layers[i] = self._first_like(self.layers[i])

    def _first_like(self, layer: Any) -> Any:
        own = self.layers[self._shared :]
        return next((one for one in own if type(one) is type(layer)), own[0])

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values of one layer; the layers below the first of them stand for it."""
        if self.layer_class_to_replicate is not None and len(self.layers) <= layer_idx:
            new = self.layer_class_to_replicate()
            self.layers.extend([new] * (layer_idx + 1 - len(self.layers)))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder both passes and the averages as beams are chosen."""
        self._on_both("reorder_cache", beam_idx)
        self._on_averages(lambda one: one.index_select(0, beam_idx.to(one.device)))

    def crop(self, tokens: int) -> None:
        """Cut both passes; a query that has been seen stays seen."""
        self._on_both("crop", tokens)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        self._on_both("batch_repeat_interleave", repeats)
        self._on_averages(lambda one: one.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences."""
        self._on_both("batch_select_indices", indices)
        self._on_averages(lambda one: one[indices])

    def reset(self) -> None:
        """Forget all tokens."""
        self._on_both("reset")
        self.averages = None

    def _on_both(self, name: str, *arguments: Any) -> None:
        getattr(self.frozen, name)(*arguments)
        for layer in {id(layer): layer for layer in self.layers}.values():
            getattr(layer, name)(*arguments)

    def _on_averages(self, change: Any) -> None:
        if self.averages is not None:
            self.averages = change(self.averages)

"""The way in which a model computes attention, remembered for each of its parts."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["AttentionImplementations"]


class AttentionImplementations:
    """What each configuration in a model says of its attention.

    transformers sets one implementation for a whole model, parts of another kind included; a
    composite may have begun with several.
    """

    def __init__(self, model: nn.Module) -> None:
        """Note what stands in the configurations of a model and of all models in it."""
        self._before: dict[int, tuple[Any, Any]] = {}
        for module in model.modules():
            self._note(getattr(module, "config", None))

    def _note(self, config: Any) -> None:
        if id(config) in self._before or not hasattr(config, "_attn_implementation_internal"):
            return
        self._before[id(config)] = (config, config._attn_implementation_internal)
        for name in config.sub_configs:
            self._note(getattr(config, name, None))

    def restore(self) -> None:
        """Bring back what was noted."""
        for config, implementation in self._before.values():
            # The public attribute would hand one value on to all parts.
            config._attn_implementation_internal = implementation

"""One model's body under another's head: what a tuned body still does of what its base could."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from deltatune.errors import NotComposable

__all__ = ["with_body_of", "with_other_head"]


def with_other_head(tuned: nn.Module, own: nn.Module) -> nn.Module:
    """Put everything that stands beside the body in another model into a tuned one.

    Args:
        tuned: a model of the same class, perhaps in peft's wrapper; it is changed and returned.
        own: whose head is taken.

    Raises:
        NotComposable: the model does not say what its body is.
    """
    plain = _plain(tuned)
    body = _body_name(own)
    for name, module in list(own.named_children()):
        if name != body:
            setattr(plain, name, module)
    return tuned


def with_body_of(own: nn.Module, tuned: nn.Module) -> nn.Module:
    """Put the body of a tuned model, with the delta that lives on it, into another model.

    Args:
        own: a model with another head on the same base; it is changed and returned.
        tuned: perhaps in peft's wrapper.

    Raises:
        NotComposable: the model does not say what its body is, or the delta lives beside it, as a
            prefix does.
    """
    plain = _plain(tuned)
    body = getattr(plain, _body_name(own), None)
    if body is None or _beside(tuned, plain):
        raise NotComposable(
            f"the tuned {type(plain).__name__} has a delta that does not live on its body alone, "
            f"which a {type(own).__name__} could take over"
        )
    head = _tied_head(own)
    setattr(own, _body_name(own), body)
    if head is not None:
        head.weight = own.get_input_embeddings().weight  # type: ignore[operator]
    return own


def _plain(model: nn.Module) -> nn.Module:
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def _beside(tuned: nn.Module, plain: nn.Module) -> bool:
    """Tell whether a wrapper has values of its own."""
    within = {id(parameter) for parameter in plain.parameters()}
    return any(id(parameter) not in within for parameter in tuned.parameters())


def _body_name(model: nn.Module) -> str:
    name: Any = getattr(model, "base_model_prefix", "")
    if not name or not hasattr(model, name):
        raise NotComposable(f"{type(model).__name__} does not say which part of it is its body")
    return str(name)


def _tied_head(model: Any) -> Any:
    """Return the output head if its weight is the embedding's; else None."""
    head = model.get_output_embeddings()
    is_tied = head is not None and head.weight is model.get_input_embeddings().weight
    return head if is_tied else None

"""Prefix tuning: trained keys and values before the input's own, in every layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deltatune.bridges.carrier import Injection
from deltatune.bridges.peft_host import AdapterCarrier, adapted
from deltatune.errors import InputError, NotComposable, NotMergeable
from deltatune.seeds import seed_for
from deltatune.sites import split
from deltatune.training_mode import evaluating

__all__ = ["KeysAndValues", "PrefixCarrier"]

ROLES = ("key", "value")
HEADS = ("classifier", "score")  # that peft lets train beside a prefix


class KeysAndValues(nn.Module):
    """Puts the prefix of all layers together from one parameter for each layer and role.

    peft keeps them as one matrix, `(tokens, 2 * layers * d_kv)`: key and value of the first layer,
    of the second, and so on. Apart they can have rates of their own.

    Args:
        layers: number of layers.
    """

    def __init__(self, layers: int) -> None:
        """Note whose each piece is, in order."""
        super().__init__()
        self.roles = ROLES * layers
        self.layers = tuple(i for i in range(layers) for _ in ROLES)

    def forward(self, *pieces: Tensor) -> Tensor:
        """Return the whole prefix, `(tokens, 2 * layers * d_kv)`."""
        return torch.cat(pieces, dim=1)

    def right_inverse(self, whole: Tensor) -> list[Tensor]:
        """Cut the whole prefix into its pieces, `(tokens, d_kv)` each."""
        return [piece.clone() for piece in whole.chunk(len(self.roles), dim=1)]


class PrefixCarrier(AdapterCarrier):
    """Carries `peft.PrefixTuningConfig`; the selection is every key and value of the model.

    It starts at random values, so that the model differs from its base before the first step.
    """

    first_export = "peft"  # it cannot be folded in

    def __init__(self, delta: Any) -> None:
        """Check what can be checked without a model.

        Raises:
            NotComposable: a projection, whose weights keys and values share.
        """
        if delta.prefix_projection:
            raise NotComposable(
                "prefix_projection makes keys and values from the same weights, so that they "
                "cannot have rates of their own, and what it trains is not what is saved: leave it "
                "out and raise the learning rate"
            )
        if not delta.num_virtual_tokens or delta.num_virtual_tokens < 1:
            raise InputError(
                f"num_virtual_tokens={delta.num_virtual_tokens} is not allowed: give an integer "
                f"from 1, such as 20"
            )
        self.delta = delta

    def prepare(self, base: nn.Module, injection: Injection) -> nn.Module:
        """Put a prefix before the keys and values of every layer.

        Raises:
            InputError: the selection is not every key and value, or the model takes no prefix.
        """
        _check_selection(injection)
        _check_heads(injection.trained_modules)
        _check_inputs(base)
        config: Any = copy.deepcopy(self.delta)
        config.task_type = injection.task_type
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(injection.seed, "adapter"))
            try:
                model: Any = adapted(base, config)
            except (ValueError, KeyError, AttributeError) as error:
                raise _no_prefix(base, error) from error
        _check_acts(model, base)
        embedding = model.prompt_encoder["default"].embedding
        parametrize.register_parametrization(
            embedding, "weight", KeysAndValues(config.num_layers), unsafe=True
        )
        return model  # type: ignore[no-any-return]

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Pass by the prefix for the length of a block."""
        return _passed_by(model)

    def merged(self, model: nn.Module) -> nn.Module:
        """Refuse: a prefix is no change of weights.

        Raises:
            NotMergeable: always.
        """
        raise _is_no_change()

    def save_as_lora(self, model: nn.Module, folder: Path) -> None:
        """Refuse: a prefix is no change of weights.

        Raises:
            NotMergeable: always.
        """
        raise _is_no_change()


def _is_no_change() -> NotMergeable:
    return NotMergeable(
        "prefix tuning adds keys and values to the input's own, which no weight can hold: export "
        "with --to peft"
    )


def _check_selection(injection: Injection) -> None:
    sites = injection.sites
    wanted = {site.name for site in sites.with_roles(*ROLES)}
    chosen = {
        site.name
        for weight, part in injection.selection.items()
        for site, _ in split(sites, weight, part)
    }
    if chosen != wanted or not wanted:
        raise InputError(
            f"prefix tuning acts on the key and the value of every layer, and the selection is "
            f"another ({len(chosen)} places): give selection by_role with roles [key, value] (in "
            f"efficientft, targets=kv)"
        )


def _check_heads(trained_modules: Sequence[str]) -> None:
    for name in trained_modules:
        if name not in HEADS:
            raise NotComposable(
                f"peft trains no head named {name!r} beside a prefix, only "
                f"{' or '.join(HEADS)}: take another delta, such as low_rank"
            )


def _check_inputs(base: nn.Module) -> None:
    reads = getattr(base, "main_input_name", "input_ids")
    if reads != "input_ids":
        raise NotComposable(
            f"prefix tuning and {type(base).__name__} cannot act together: a prefix stands before "
            f"tokens of text, and the model reads {reads}; take another delta, such as low_rank"
        )


def _check_acts(model: Any, base: nn.Module) -> None:
    """Try the prefix on two tokens: models that take none, or pass over it, are found early."""
    ids = torch.tensor([[3, 4]], device=next(base.parameters()).device)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        with evaluating(model):
            logits = model(**given).logits
            with _passed_by(model):
                if torch.equal(logits, model(**given).logits):
                    raise ValueError("the model passes over the prefix")
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        raise _no_prefix(base, error) from error


@contextmanager
def _passed_by(model: Any) -> Iterator[None]:
    # peft's own way fails on models that cannot generate, such as classifiers.
    names = [name for name in ("forward", "generate") if hasattr(model.base_model, name)]
    for name in names:
        setattr(model, name, getattr(model.base_model, name))
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def _no_prefix(base: nn.Module, error: Exception) -> NotComposable:
    reason = " ".join(str(error).split()) or type(error).__name__
    return NotComposable(
        f"prefix tuning and {type(base).__name__} cannot act together: {reason[:200]}; take "
        f"another delta, such as low_rank"
    )

"""The one peft type that carries every delta of ours."""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

from deltatune.errors import NotComposable

__all__ = ["DELTA", "NAME", "register"]

NAME = "DELTA"


def _extended() -> Any:
    """Add `DELTA` to peft's enumeration of types, which has no public way to grow."""
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    closed: Any = PeftType
    member = str.__new__(closed, NAME)
    member._name_ = NAME
    member._value_ = NAME
    member.__objclass__ = closed
    member._sort_order_ = len(closed._member_names_)
    closed._member_map_[NAME] = member
    closed._member_names_.append(NAME)
    closed._value2member_map_[NAME] = member
    # From Python 3.12 on, members are found as class attributes, which the class forbids setting.
    type.__setattr__(closed, NAME, member)
    return member


DELTA = _extended()


def register() -> None:
    """Make peft know the type `DELTA`: its configuration and its tuner; harmless when repeated.

    Raises:
        NotComposable: another package has registered a type of this name.
    """
    from deltatune.bridges.peft_config import DeltaConfig  # it needs DELTA itself
    from deltatune.bridges.peft_model import DeltaModel

    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(DELTA)
    if present is DeltaConfig:
        return
    if present is not None:
        raise NotComposable(
            f"peft already has a type {NAME} of {present.__module__}, so deltatune cannot be used "
            f"in the same process: import only one of the two"
        )
    register_peft_method(name=NAME.lower(), config_cls=DeltaConfig, model_cls=DeltaModel)

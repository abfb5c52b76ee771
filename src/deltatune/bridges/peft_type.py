"""The one peft type that carries every delta of ours."""

from __future__ import annotations

import sys
from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

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
    if sys.version_info >= (3, 12):  # members are looked up as class attributes there
        type.__setattr__(closed, NAME, member)
    return member


DELTA = _extended()


def register() -> None:
    """Make peft know the type `DELTA`: its configuration and its tuner; harmless when repeated."""
    if DELTA in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    from deltatune.bridges.peft_config import DeltaConfig
    from deltatune.bridges.peft_model import DeltaModel

    register_peft_method(name=NAME.lower(), config_cls=DeltaConfig, model_cls=DeltaModel)

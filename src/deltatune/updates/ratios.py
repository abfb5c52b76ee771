"""Learning rates by role, by pattern and by layer, as ratios to the base rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from deltatune.errors import InputError, unknown_name
from deltatune.parts import Source, declare
from deltatune.paths import matches_tail
from deltatune.sites import ROLES, Sites
from deltatune.updates.update import Factor, TrainedParameter

__all__ = ["Ratios", "check_ratio", "module_of"]


def check_ratio(ratio: float) -> None:
    """Refuse a ratio of learning rates that is not a finite number above 0.

    Raises:
        InputError: with the ratio; a rate of 0 is no way to freeze, since decay and momentum go on.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise InputError(f"ratio={ratio:g} is not allowed: give a finite number above 0")


def module_of(parameter: TrainedParameter) -> str:
    """Return the path of the module that a parameter acts on."""
    if parameter.part_role in ("weight", "bias"):
        return parameter.canonical.rpartition(".")[0]
    return parameter.canonical


@declare(
    "updates",
    "ratios",
    source=Source(
        authors="Yao et al.",
        year=2025,
        title=(
            "Theoretical Insights into Fine-Tuning Attention Mechanism: "
            "Generalization and Optimization"
        ),
        arxiv="2410.02247",
        where="theorem 2, the ratio lambda",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Multiply learning rates by constants: `rate = base * role * patterns * layer`.

    The schedule multiplies all rates alike, so the ratios hold at every step. They are ratios of
    learning rates, never of gradients: Adam's step does not see a gradient's scale.

    Args:
        roles: role of the place (`deltatune.sites.ROLES`) -> ratio.
        patterns: pattern of a module's or parameter's path -> ratio, compared with the end of the
            path component by component; every pattern that matches counts.
        layers: layer from the input, from 0 -> ratio.
        default: ratio of the roles that are not listed.
    """

    changes_who_trains: ClassVar[bool] = False

    roles: Mapping[str, float] = field(default_factory=dict)
    patterns: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[int, float] = field(default_factory=dict)
    default: float = 1.0

    def __post_init__(self) -> None:
        for role in self.roles:
            if role not in ROLES:
                raise unknown_name("role", role, ROLES)
        ratios = (
            *self.roles.values(),
            *self.patterns.values(),
            *self.layers.values(),
            self.default,
        )
        for ratio in ratios:
            check_ratio(ratio)

    @classmethod
    def example(cls) -> Ratios:
        """Return a rule that gives several groups on any model."""
        return cls(roles={"value": 4.0}, layers={0: 0.5})

    def factors(self, parameters: Sequence[TrainedParameter], sites: Sites) -> Mapping[str, Factor]:
        """Return parameter name -> factor.

        Raises:
            InputError: a role, pattern or layer that reaches no trained parameter: a ratio that
                silently does nothing is the usual mistake here.
        """
        self._check_all_reached(parameters)
        return {parameter.name: self._factor(parameter) for parameter in parameters}

    def live(self, step: int, parameters: Sequence[TrainedParameter]) -> frozenset[str] | None:
        """Return None: all train at every step."""
        return None

    def _factor(self, parameter: TrainedParameter) -> Factor:
        ratio = self.roles.get(parameter.role, self.default)
        labels = []
        for pattern, of_pattern in self.patterns.items():
            if _matches(pattern, parameter):
                ratio *= of_pattern
                labels.append(pattern)
        if parameter.layer is not None and parameter.layer in self.layers:
            ratio *= self.layers[parameter.layer]
            labels.append(f"layer {parameter.layer}")
        return Factor(learning_rate=ratio, label=" ".join(labels))

    def _check_all_reached(self, parameters: Sequence[TrainedParameter]) -> None:
        trained = {parameter.role for parameter in parameters}
        for role, ratio in self.roles.items():
            if role not in trained and ratio != self.default:
                raise _reaches_nothing(f"role {role!r}", "roles", trained)
        for pattern in self.patterns:
            if not any(_matches(pattern, parameter) for parameter in parameters):
                modules = {module_of(parameter) for parameter in parameters}
                raise _reaches_nothing(f"pattern {pattern!r}", "modules", modules)
        layers = {parameter.layer for parameter in parameters if parameter.layer is not None}
        for layer in self.layers:
            if layer not in layers:
                raise _reaches_nothing(f"layer {layer}", "layers", map(str, sorted(layers)))


def _matches(pattern: str, parameter: TrainedParameter) -> bool:
    return matches_tail(pattern, parameter.canonical) or matches_tail(pattern, module_of(parameter))


def _reaches_nothing(what: str, kind: str, trained: Iterable[str]) -> InputError:
    names = sorted(trained)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return InputError(
        f"the ratio of {what} reaches no trained parameter: the trained {kind} are "
        f"{shown or 'none'}; leave the ratio out or train what it is for"
    )

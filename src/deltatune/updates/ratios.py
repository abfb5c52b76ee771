"""Learning rates by role, by pattern and by layer, as ratios to the base rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from deltatune.errors import InputError, unknown_name
from deltatune.parts import Source, declare
from deltatune.paths import matches_tail
from deltatune.sites import ROLES, Sites
from deltatune.updates.depth import RoleRatio, check_ratio, ratio_at, role_ratio
from deltatune.updates.update import Factor, TrainedParameter

__all__ = ["Ratios", "module_of"]


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
        roles: role of the place (`deltatune.sites.ROLES`) -> ratio: a number, a mapping of layers
            to numbers (layers left out have `default`), or a function of depth (`ByDepth`).
        patterns: pattern of a module's or parameter's path -> ratio, compared with the end of the
            path component by component; every pattern that matches counts.
        layers: layer from the input, from 0 -> ratio.
        default: ratio of the roles that are not listed.
        spares: roles of parts within their delta (`TrainedParameter.part_role`) that keep the base
            rate: the ratios are for numbers in the unit of a weight, and the location of a
            coefficient is none. They do not decay either, which would draw them to one end.
    """

    changes_who_trains: ClassVar[bool] = False

    roles: Mapping[str, RoleRatio] = field(default_factory=dict)
    patterns: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[int, float] = field(default_factory=dict)
    default: float = 1.0
    spares: tuple[str, ...] = ("location",)

    def __post_init__(self) -> None:
        for role in self.roles:
            if role not in ROLES:
                raise unknown_name("role", role, ROLES)
        for of_role in self.roles.values():
            role_ratio(of_role)
        for ratio in (*self.patterns.values(), *self.layers.values(), self.default):
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
        weights = [one for one in parameters if one.part_role not in self.spares]
        self._check_all_reached(weights)
        spared = Factor(weight_decay=0.0)
        return {
            one.name: spared if one.part_role in self.spares else self._factor(one)
            for one in parameters
        }

    def live(
        self, step: int, parameters: Sequence[TrainedParameter], *, steps: int
    ) -> frozenset[str] | None:
        """Return None: all train at every step."""
        return None

    def _factor(self, parameter: TrainedParameter) -> Factor:
        of_role = self.roles.get(parameter.role, self.default)
        of_layer = ratio_at(of_role, parameter.layer, parameter.number_of_layers)
        ratio = self.default if of_layer is None else of_layer
        labels = []
        if isinstance(of_role, Mapping) and of_layer is not None:
            labels.append(f"layer {parameter.layer}")
        for pattern, of_pattern in self.patterns.items():
            if _matches(pattern, parameter):
                ratio *= of_pattern
                labels.append(pattern)
        if parameter.layer is not None and parameter.layer in self.layers:
            ratio *= self.layers[parameter.layer]
            labels.append(f"layer {parameter.layer}")
        return Factor(learning_rate=ratio, label=" ".join(dict.fromkeys(labels)))

    def _check_all_reached(self, parameters: Sequence[TrainedParameter]) -> None:
        trained = {parameter.role for parameter in parameters}
        for role, ratio in self.roles.items():
            if role not in trained and ratio != self.default:
                raise _reaches_nothing(f"role {role!r}", "roles", trained)
            if isinstance(ratio, Mapping):
                self._check_layers_of_role(role, ratio, parameters)
        for pattern in self.patterns:
            if not any(_matches(pattern, parameter) for parameter in parameters):
                modules = {module_of(parameter) for parameter in parameters}
                raise _reaches_nothing(f"pattern {pattern!r}", "modules", modules)
        layers = {parameter.layer for parameter in parameters if parameter.layer is not None}
        for layer in self.layers:
            if layer not in layers:
                raise _reaches_nothing(f"layer {layer}", "layers", map(str, sorted(layers)))

    def _check_layers_of_role(
        self, role: str, ratio: Mapping[Any, Any], parameters: Sequence[TrainedParameter]
    ) -> None:
        """Refuse a layer without the role, and a function of depth where there is no depth."""
        found = {parameter.layer for parameter in parameters if parameter.role == role}
        layers = sorted(layer for layer in found if layer is not None)
        if "shape" in ratio:
            if None in found:
                raise InputError(
                    f"the ratio by depth of role {role!r} has no meaning for the {role} outside "
                    f"the layers: give a number, or a mapping of layers to numbers"
                )
            return
        for layer in ratio:
            if layer not in layers:
                raise _reaches_nothing(
                    f"role {role!r} in layer {layer}", "layers", map(str, layers)
                )


def _matches(pattern: str, parameter: TrainedParameter) -> bool:
    return matches_tail(pattern, parameter.canonical) or matches_tail(pattern, module_of(parameter))


def _reaches_nothing(what: str, kind: str, trained: Iterable[str]) -> InputError:
    names = sorted(trained)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return InputError(
        f"the ratio of {what} reaches no trained parameter: the trained {kind} are "
        f"{shown or 'none'}; leave the ratio out or train what it is for"
    )

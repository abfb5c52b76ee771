"""EfficientFT: train query and value, freeze key, and let the value move faster, on any host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.bridges.carriers import carrier_of
from deltatune.errors import InputError, NotComposable, unknown_name
from deltatune.parts import Source, declare
from deltatune.recipe import Recipe, hosted
from deltatune.selections.narrowing import roles_of, with_roles
from deltatune.sites import PROJECTIONS, ROLES
from deltatune.updates.chain import Chain
from deltatune.updates.depth import largest, role_ratio
from deltatune.updates.name_routing import NameRouting
from deltatune.updates.ratios import Ratios
from deltatune.updates.weight_decay import WeightDecay

__all__ = ["PRESETS", "Preset", "efficientft", "efficientft_full"]

SOURCE = Source(
    authors="Yao et al.",
    year=2025,
    title="Theoretical Insights into Fine-Tuning Attention Mechanism: "
    "Generalization and Optimization",
    arxiv="2410.02247",
    where="theorems 1 and 2, table 2",
)
LETTERS: Mapping[str, str] = {"q": "query", "k": "key", "v": "value", "o": "output"}
NEUTRAL = Ratios()
FIRST_HOST = "lora"
EMBEDDING_LEARNING_RATE = 1e-6  # in the authors' code, whatever its option says


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a recipe takes where no rates are given.

    Args:
        adapter_ratio: of learning rates, value to query, where a change beside the weights trains.
        in_place_ratio: the same where base weights themselves train.
        query_learning_rate: eta in the paper; 0 turns the rates about the host's own.
        routes_by_name: whether fragments of names decide, as in the authors' code, slips included.
    """

    adapter_ratio: float
    in_place_ratio: float
    query_learning_rate: float
    routes_by_name: bool


PRESETS: Mapping[str, Preset] = {
    "clean": Preset(
        adapter_ratio=4.0, in_place_ratio=2.0, query_learning_rate=0.0, routes_by_name=False
    ),
    "authors": Preset(
        adapter_ratio=4.0, in_place_ratio=4.0, query_learning_rate=1e-4, routes_by_name=True
    ),
}


@declare("recipes", "efficientft", source=SOURCE)
def efficientft(
    host: Any = FIRST_HOST,
    targets: str | tuple[str, ...] = "qv",
    value_learning_rate: float | str = "preset",
    value_learning_rate_ratio: Any = "preset",
    freeze: str | tuple[str, ...] = (),
    preset: str = "clean",
) -> Recipe:
    """Train query and value, freeze key, the value faster than the rest, on top of any recipe.

    The host gives delta, optimizer, length and everything else; its selection is narrowed to
    `targets`, and its own factors (LoRA+, layer-wise decay) multiply with those made here. Query,
    key and head train at eta, values at ratio * eta. The value's rate decides how a run goes, and
    the query's hardly matters over two decades (the authors' heatmaps), so the value's is what can
    be stated: tune it first, eta follows.

    Args:
        host: a recipe, the name of one, or a mapping of its `name` and parameters.
        targets: what trains: letters of q, k, v, o (`"qkv"`), or a list that may also hold any role
            of `deltatune.sites.ROLES`; `"host"` keeps the host's own places.
        value_learning_rate: eta_V in the paper, where the ratio is largest, before patterns;
            `"preset"` turns the rates about the host's own, which then is the geometric mean of
            eta and eta_V (so a ratio of 1 is the host itself).
        value_learning_rate_ratio: lambda = eta_V / eta in the paper: a number; a mapping of layers
            to numbers (no faster where left out); a function of depth, `{shape: geometric, first:
            2, last: 8}`; or a mapping of roles and path patterns to any of these (patterns: to
            numbers), which multiply. `"preset"` is 4, but 2 where base weights themselves train.
            There is no rule in the paper, which tries 2, 4 and 8: start at the preset, go to 8 on
            small data sets, halve it if the loss rises within the warm-up.
        freeze: taken out of the host's own places, with `targets="host"`; all that is no target is
            frozen anyway.
        preset: `clean`, roles from the module graph; or `authors`, the routing of their code with
            its slips (see `NameRouting`) at eta 1e-4 and ratio 4.

    Raises:
        InputError: a target, ratio, preset or host that does not exist, or that do not fit.
        NotComposable: a host whose selection does not go by roles.

    Source: see `SOURCE`. The authors' code finds roles by substrings of parameter names, so it
    loses the ratio on T5, GPT-2, DistilBERT and fused projections, and gives the ratio to biases of
    the head; here roles are resolved from the module graph and the head keeps the query's rate.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    chosen, base = PRESETS[preset], _host(host)
    selection = _selection(base, targets, freeze)
    ratios = _ratios(value_learning_rate_ratio, base, chosen, roles_of(selection))
    top = largest(ratios.roles.get("value", 1.0))
    eta = _query_learning_rate(value_learning_rate, top, base, chosen)
    rule = _by_name(ratios, eta) if chosen.routes_by_name else ratios
    return dataclasses.replace(
        base,
        name="efficientft" if base.name == FIRST_HOST else f"efficientft_{base.name}",
        selection=selection,
        update=_chained(base, rule, exempts=not chosen.routes_by_name),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=eta),
    )


@declare("recipes", "efficientft_full", source=SOURCE)
def efficientft_full(
    value_learning_rate: float = 2e-4, value_learning_rate_ratio: Any = 2.0
) -> Recipe:
    """Train the query and value weights themselves, freeze key; full tuning wants a smaller ratio.

    Args:
        value_learning_rate: of the value projection.
        value_learning_rate_ratio: 1 to 2 for full tuning (above that the authors' own table shows
            collapses); in any form that `efficientft` takes.

    Source: see `SOURCE`, rows "full QV" of table 2.
    """
    return efficientft(
        host="full",
        value_learning_rate=value_learning_rate,
        value_learning_rate_ratio=value_learning_rate_ratio,
    )


def _host(host: Any) -> Recipe:
    given = hosted(host)
    for rule in _rules(given.update):
        if isinstance(rule, NameRouting) or "value" in getattr(rule, "roles", ()):
            raise InputError(
                f"the host {given.name!r} already gives the value a rate of its own: give a host "
                f"that does not, such as {FIRST_HOST!r}"
            )
    return given


def _rules(update: Any) -> tuple[Any, ...]:
    if isinstance(update, Chain):
        return tuple(rule for inner in update.updates for rule in _rules(inner))
    return () if update == NEUTRAL else (update,)


def _chained(host: Recipe, rule: Any, *, exempts: bool) -> Any:
    """Put a rule before those of the host; biases and norms do not decay."""
    return Chain(updates=(rule, *_rules(host.update), *((WeightDecay(),) if exempts else ())))


def _roles(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    roles = tuple(LETTERS.get(item, item) for item in given)
    for item, role in zip(given, roles, strict=True):
        if role not in ROLES:
            raise unknown_name(name, item, (*LETTERS, *ROLES))
    return roles


def _selection(host: Recipe, targets: str | Sequence[str], freeze: str | Sequence[str]) -> Any:
    """Return the host's selection, narrowed to what shall train."""
    frozen = _roles("freeze", freeze)
    own = roles_of(host.selection)
    if not own and (frozen or targets != "host"):
        raise NotComposable(
            f"the selection {type(host.selection).__name__} of the host {host.name!r} does not go "
            f"by roles, so targets cannot narrow it: give targets=host and no freeze"
        )
    if targets == "host":
        kept = tuple(role for role in own if role not in frozen)
        return with_roles(host.selection, kept) if frozen else host.selection
    roles = _roles("targets", targets)
    if set(roles) & set(frozen):
        raise InputError(
            f"targets={targets!r} and freeze={freeze!r} name the same: a target trains, so leave "
            f"it out of one of them"
        )
    # A target that the model does not have is a mistake here, whatever the host passes over.
    return with_roles(host.selection, roles, allow_absent=False)


def _ratios(given: Any, host: Recipe, preset: Preset, roles: Sequence[str]) -> Ratios:
    """Turn any form of the ratio into the rule for rates."""
    if given == "preset":
        trains_base = carrier_of(host.delta).trains_base
        ratio = preset.in_place_ratio if trains_base else preset.adapter_ratio
        return Ratios(roles={"value": ratio}) if not roles or "value" in roles else Ratios()
    names = given if _is_by_name(given) else {"value": given}
    for role, ratio in names.items():
        if roles and role in PROJECTIONS and role not in roles and ratio != 1:
            raise InputError(
                f"value_learning_rate_ratio={given!r} is for the {role}, and the targets are "
                f"{', '.join(roles)}: leave the ratio out, or add the target"
            )
    try:
        ratios = {name: role_ratio(ratio) for name, ratio in names.items()}
        return Ratios(
            roles={name: ratio for name, ratio in ratios.items() if name in ROLES},
            patterns={name: ratio for name, ratio in ratios.items() if name not in ROLES},
        )
    except InputError as error:
        raise InputError(f"value_learning_rate_ratio: {error}") from error


def _is_by_name(given: Any) -> bool:
    """Tell a mapping of roles and patterns from one of layers, and from a function of depth."""
    return (
        isinstance(given, Mapping)
        and "shape" not in given
        and not all(str(key).isdecimal() for key in given)
    )


def _query_learning_rate(given: float | str, top: float, host: Recipe, preset: Preset) -> float:
    """Return eta, from the value's rate, the preset, or the host's own rate."""
    if given == "preset":
        return preset.query_learning_rate or host.optimizer.learning_rate / math.sqrt(top)
    try:
        rate = float(given)
    except ValueError as error:
        raise _no_rate(given) from error
    if not (math.isfinite(rate) and rate > 0):
        raise _no_rate(given)
    return rate / top


def _no_rate(given: float | str) -> InputError:
    return InputError(
        f"value_learning_rate={given} is not allowed: give a finite number above 0, or 'preset'"
    )


def _by_name(ratios: Ratios, eta: float) -> NameRouting:
    ratio = ratios.roles.get("value", 1.0)
    if isinstance(ratio, Mapping) or ratios.patterns or set(ratios.roles) - {"value"}:
        raise InputError(
            "the authors' code knows one ratio for all values: give value_learning_rate_ratio a "
            "number with preset=authors"
        )
    return NameRouting(value_ratio=ratio, embedding_ratio=EMBEDDING_LEARNING_RATE / eta)

"""Whose change is this parameter? Names of trained parameters, traced back to places of the base.

The way back follows the module graph: which module is an adapter's layer, which a saved copy, which
a parametrisation. A name alone is read only where no model is at hand (`canonical_name`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList

from deltatune.blocks.block import Block
from deltatune.deltas.delta import Delta
from deltatune.sites import Site, Sites
from deltatune.updates.update import TrainedParameter

__all__ = ["canonical_name", "carries_adapter", "trained_parameters", "unwrapped"]

# peft's own names of the parts of a change -> what an update rule calls them.
PART_ROLES: Mapping[str, str] = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_embedding_A": "down",
    "lora_embedding_B": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_E": "magnitude",
    "ia3_l": "magnitude",
}
OWN_PREFIX = "delta_"  # of our own peft type, also before it is registered
COMPILED = "_orig_mod"
# Steps that sharding, activation checkpointing and compilation put into a path anywhere.
WRAPPING_STEPS = (COMPILED, "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PEFT_ROOT = ("base_model", "model")


@dataclass(frozen=True)
class _Place:
    """Where a parameter acts: module path and the steps from there to it."""

    module: str
    rest: tuple[str, ...]
    part_role: str
    roles: tuple[str, ...] = ()
    layer: int | None = None  # where the piece of a parametrisation knows it


def canonical_name(name: str) -> str:
    """Return the base parameter or module that a parameter's name acts on.

    Read from the name alone, so a base module that is itself named like an adapter's part would
    mislead it; `trained_parameters` looks at the modules instead.

    >>> canonical_name("base_model.model.layers.0.q_proj.lora_A.default.weight")
    'layers.0.q_proj'
    >>> canonical_name("module._orig_mod.base_model.model.score.modules_to_save.default.weight")
    'score.weight'
    >>> canonical_name("layers.0.q_proj.weight")
    'layers.0.q_proj.weight'
    """
    steps = [step for step in name.split(".") if step not in WRAPPING_STEPS]
    while steps and steps[0] == "module":
        steps = steps[1:]
    if tuple(steps[:2]) != PEFT_ROOT:
        return ".".join(steps)
    prefixes = (OWN_PREFIX, *PEFT_TYPE_TO_PREFIX_MAPPING.values())
    kept: list[str] = []
    rest = iter(steps[2:])
    for step in rest:
        if step == "modules_to_save":
            next(rest, None)
        elif step.startswith(prefixes) or step == "token_adapter":
            break
        elif step not in ("base_layer", "original_module"):
            kept.append(step)
    return ".".join(kept)


def carries_adapter(model: nn.Module) -> bool:
    """Tell whether peft has wrapped the model or put layers of its own into it."""
    return isinstance(model, PeftModel) or any(
        isinstance(module, BaseTunerLayer) for module in model.modules()
    )


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """Take off data parallelism and compilation.

    Returns:
        The model inside, and the prefix that the wrapper puts before its parameters' names.
    """
    prefix = ""
    while True:
        inner = getattr(model, COMPILED, None)
        if isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model, prefix = model.module, prefix + "module."
        elif isinstance(inner, nn.Module):
            model, prefix = inner, f"{prefix}{COMPILED}."
        else:
            return model, prefix


def trained_parameters(model: nn.Module, sites: Sites) -> list[TrainedParameter]:
    """Describe every parameter that requires a gradient, in the order of the module graph.

    Args:
        model: a plain model, one that trains in place, or a `PeftModel` of any kind; also inside
            `DistributedDataParallel` or compiled.
        sites: of the base model, before adapters came in.
    """
    inner, prefix = unwrapped(model)
    by_module = _sites_by_module(sites)
    modules = dict(inner.named_modules())
    found = []
    for name, parameter in inner.named_parameters():
        if not parameter.requires_grad:
            continue
        described = _described(name, modules, by_module, sites)
        found.append(
            replace(described, name=prefix + name, shape=tuple(int(n) for n in parameter.shape))
        )
    return found


def _sites_by_module(sites: Sites) -> Mapping[str, tuple[Site, ...]]:
    by_module: dict[str, tuple[Site, ...]] = {}
    for site in sites.values():
        by_module[site.module] = (*by_module.get(site.module, ()), site)
    return by_module


def _described(
    name: str,
    modules: Mapping[str, nn.Module],
    by_module: Mapping[str, tuple[Site, ...]],
    sites: Sites,
) -> TrainedParameter:
    place = _placed(name, modules)
    canonical = ".".join([*filter(None, [place.module]), *place.rest])
    found = _sites_of(place, canonical, by_module, sites)
    roles = {site.role for site in found}
    if not found and place.layer is not None:
        roles = set(place.roles)
    return TrainedParameter(
        name=name,
        canonical=canonical,
        # A change that spans several roles, such as one adapter over a fused weight, has none.
        role=roles.pop() if len(roles) == 1 else "other",
        # A bias of its own name, beside a fused weight, is known by its site.
        part_role="bias" if any(s.bias == canonical for s in found) else place.part_role,
        layer=found[0].layer if found else place.layer,
        number_of_layers=sites.number_of_layers,
        shape=(),
    )


def _placed(name: str, modules: Mapping[str, nn.Module]) -> _Place:
    """Walk from the root to the parameter and note where the base ends and a change begins."""
    steps = name.split(".")
    base: list[str] = []
    for i, path in enumerate(_paths(steps)):
        module, step = modules[path], steps[i]
        below = tuple(steps[i:])
        if isinstance(module, BaseTunerLayer) and step != "base_layer":
            return _in_adapter(".".join(base), below, path, modules)
        if isinstance(module, AuxiliaryTrainingWrapper) and step == "modules_to_save":
            return _in_base(".".join(base), below[2:])
        if isinstance(module, ParametrizationList):
            return _in_parametrization(base, step, module)
        if isinstance(module, Block):
            return _Place(".".join(base), below, module.role_of(below))
        if not _is_wrapping(module, step):
            base.append(step)
    return _in_base(".".join(base[:-1]), tuple(base[-1:]))


def _paths(steps: list[str]) -> Iterator[str]:
    """Yield the path of the module that each step is taken from, the root first."""
    for i in range(len(steps)):
        yield ".".join(steps[:i])


def _is_wrapping(module: nn.Module, step: str) -> bool:
    """Tell whether a step leads from a wrapper to what it wraps."""
    wraps = {
        "base_model": PeftModel,
        "model": BaseTuner,
        "base_layer": BaseTunerLayer,
        "original_module": AuxiliaryTrainingWrapper,
    }
    return step in WRAPPING_STEPS or (step in wraps and isinstance(module, wraps[step]))


def _in_base(module: str, rest: tuple[str, ...]) -> _Place:
    # A saved copy can be a whole tree: the site is that of the module which owns the parameter.
    owner = ".".join([*filter(None, [module]), *rest[:-1]])
    return _Place(owner, rest[-1:], "bias" if rest[-1] == "bias" else "weight")


def _in_parametrization(base: list[str], step: str, parametrization: ParametrizationList) -> _Place:
    # base ends in [..., module, "parametrizations", parameter]; its pieces are named original<i>.
    module, parameter = ".".join(base[:-2]), base[-1]
    part_role = "bias" if parameter == "bias" else "weight"
    roles = getattr(parametrization[0], "roles", None)
    digits = step.removeprefix("original")
    if roles is None or not digits.isdecimal():
        return _Place(module, (parameter,), part_role)
    # A prefix belongs to no place of the base, and says itself which layer it is for.
    layers = getattr(parametrization[0], "layers", None)
    layer = layers[int(digits)] if layers is not None else None
    return _Place(module, (parameter,), part_role, (roles[int(digits)],), layer)


def _in_adapter(
    module: str, below: tuple[str, ...], path: str, modules: Mapping[str, nn.Module]
) -> _Place:
    for depth in range(len(below), 0, -1):
        owner = modules.get(".".join([*filter(None, [path]), *below[:depth]]))
        if isinstance(owner, Delta):
            own_name = ".".join(below[depth:])
            part_role = owner.roles.get(own_name) or owner.roles.get(below[depth]) or "values"
            # Only what stands above the delta: its own parameters may be called up and down.
            return _Place(module, (), part_role, below[:depth])
    return _Place(module, (), PART_ROLES.get(below[0], "values"), below)


def _sites_of(
    place: _Place, canonical: str, by_module: Mapping[str, tuple[Site, ...]], sites: Sites
) -> tuple[Site, ...]:
    """Find the sites by exact path; of a fused module the one whose role is named below it."""
    own = sites.of_parameter(canonical)
    if own is not None:
        return (own,)
    found = by_module.get(place.module, ())
    named = tuple(site for site in found if site.role in place.roles)
    return named or found

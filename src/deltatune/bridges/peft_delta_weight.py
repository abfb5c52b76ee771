"""The change that any peft adapter makes to the weights of its base, layer by layer."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from deltatune.bridges.quantized import is_packed, shape_of_packed
from deltatune.errors import InputError, NotMergeable, unknown_name
from deltatune.lazy_tensors import LazyTensors

__all__ = ["changes_of"]


@dataclass(frozen=True)
class _Change:
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


class _Changes(LazyTensors):
    def __init__(self, changes: Mapping[str, _Change]) -> None:
        self._changes = changes

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        return self._changes[name].make().to(torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._changes[name].shape


def changes_of(
    model: nn.Module, adapter_name: str, base: Mapping[str, Tensor] | None = None
) -> LazyTensors:
    """Return an adapter's changes by the names of the base without adapters.

    peft's `get_delta_weight` means something else for almost every type (DoRA leaves its magnitude
    out, OFT gives a rotation, (IA)3 has none, biases are missing), but merging is always whole. So
    a layer's change is what merging does to a copy of it. In float64 the base weight cancels
    without a trace, and the change keeps float32's full precision.

    All parameters of an adapted layer are listed, also a bias that stays as it is.

    Args:
        model: a `PeftModel`.
        adapter_name: of the adapter.
        base: the base weights; needed only where the adapter trained some of them in place.

    Raises:
        InputError: no peft model, an unknown adapter, a merged one, or `base` is needed.
        NotMergeable: the adapter is no change of weights; the message names its type and why.
    """
    tuner, kind = _tuner_of(model, adapter_name)
    changes: dict[str, _Change] = {}
    tried: set[type] = set()
    for path, module in _outermost_wrappers(tuner.model):
        if isinstance(module, ModulesToSaveWrapper):
            changes.update(_saved_copy(path, module, adapter_name))
            continue
        layer: Any = (
            module.token_adapter if isinstance(module, AuxiliaryTrainingWrapper) else module
        )
        if adapter_name not in layer._get_available_adapters():
            continue
        own = _layer_changes(path, layer, adapter_name, kind)
        if type(layer) not in tried:
            tried.add(type(layer))
            _try(own)
        changes.update(own)
    changes = _once_per_tensor(tuner.model, changes)
    changes.update(_in_place(tuner.peft_config[adapter_name], tuner.model, changes, base))
    if not changes:
        raise NotMergeable(
            f"the adapter {adapter_name!r} of type {kind} changes no weight of its base"
        )
    return _Changes(changes)


def _tuner_of(model: nn.Module, adapter_name: str) -> tuple[Any, str]:
    if not isinstance(model, PeftModel):
        raise InputError(
            f"the model is a {type(model).__name__} without adapters: give a PeftModel, or use "
            f"from_difference for a model that was tuned in place"
        )
    if adapter_name not in model.peft_config:
        raise unknown_name("adapter", adapter_name, model.peft_config)
    config: Any = model.peft_config[adapter_name]
    kind = str(config.peft_type.value)
    tuner: Any = model.base_model
    if not isinstance(tuner, BaseTuner):
        raise NotMergeable(
            f"the adapter {adapter_name!r} of type {kind} acts on inputs, not on weights: "
            f"it has no weight delta"
        )
    try:
        with warnings.catch_warnings():
            # It also warns about tied weights, which are looked at one by one below.
            warnings.simplefilter("ignore", UserWarning)
            tuner._check_merge_allowed()  # type: ignore[no-untyped-call]
    except (NotImplementedError, ValueError) as error:
        raise _refused(kind, str(error)) from error
    return tuner, kind


@torch.no_grad()
def _try(changes: Mapping[str, _Change]) -> None:
    """Make one change, so that what cannot merge says so at once and not halfway through a save."""
    next(iter(changes.values())).make()


def _refused(kind: str, reason: str) -> NotMergeable:
    return NotMergeable(
        f"a peft adapter of type {kind} has no weight delta here: {' '.join(reason.split())}"
    )


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _outermost_wrappers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if _is_wrapper(child):
            yield child_path, child
        else:
            yield from _outermost_wrappers(child, child_path)


def _base_parameters(layer: Any) -> dict[str, Tensor]:
    """Return the parameters of what a layer wraps, under their names without adapters."""
    named = layer.get_base_layer().named_parameters()
    return {name.replace("base_layer.", ""): parameter.detach() for name, parameter in named}


def _layer_changes(path: str, layer: Any, adapter_name: str, kind: str) -> dict[str, _Change]:
    if layer.merged:
        raise InputError(
            f"adapters are merged into {path}, so its base weight is gone: "
            f"call unmerge_adapter() first"
        )
    parameters = dict(layer.get_base_layer().named_parameters())
    packed = {name for name, one in parameters.items() if is_packed(one)}
    for name, parameter in _base_parameters(layer).items():
        if not (parameter.dtype.is_floating_point or name in packed):
            raise _refused(
                kind,
                f"{path}.{name} is stored as {parameter.dtype}: load the adapter on the base "
                f"without quantisation",
            )
    if packed:  # nothing can be folded into it, but what would be is known
        change = functools.partial(layer.get_delta_weight, adapter_name)
        return {f"{path}.weight": _Change(shape_of_packed(parameters["weight"]), change)}
    parameters = _base_parameters(layer)

    def make(name: str) -> Tensor:
        before = _base_parameters(layer)
        after = _merged(layer, adapter_name, kind)
        if set(after) != set(before):
            odd = sorted(set(after) ^ set(before))[0]
            raise _refused(kind, f"merging adds or takes away {path}.{odd}")
        return after[name] - before[name].to(after[name])

    return {
        f"{path}.{name}": _Change(tuple(parameter.shape), functools.partial(make, name))
        for name, parameter in parameters.items()
    }


def _merged(layer: Any, adapter_name: str, kind: str) -> dict[str, Tensor]:
    """Return the parameters of a layer's base after merging into a float64 copy."""
    copied: Any = copy.deepcopy(layer)
    if any(parameter.device.type == "mps" for parameter in copied.parameters()):
        copied = copied.to("cpu")  # Apple's GPUs have no float64
    copied = copied.to(torch.float64)
    try:
        for module in copied.modules():
            if isinstance(module, BaseTunerLayer) and adapter_name not in module.merged_adapters:
                module.merge(adapter_names=[adapter_name])
    except NotMergeable:
        raise  # ours names the delta and the place already
    except (NotImplementedError, ValueError) as error:
        raise _refused(kind, str(error) or "peft cannot merge it") from error
    return _base_parameters(copied)


def _saved_copy(path: str, wrapper: ModulesToSaveWrapper, adapter_name: str) -> dict[str, _Change]:
    if adapter_name not in wrapper.modules_to_save:
        return {}
    before = wrapper.original_module.state_dict()
    after = wrapper.modules_to_save[adapter_name].state_dict()
    changes = {}
    for name, tensor in before.items():
        if tensor.dtype.is_floating_point:
            make = functools.partial(_subtracted, after[name], tensor)
            changes[f"{path}.{name}"] = _Change(tuple(tensor.shape), make)
    return changes


def _subtracted(after: Tensor, before: Tensor) -> Tensor:
    wide = torch.promote_types(after.dtype, torch.float32)
    return after.to(wide) - before.to(device=after.device, dtype=wide)


def _all_base_parameters(root: nn.Module) -> dict[str, Tensor]:
    """Return every parameter of the base under its name without adapters, tied ones repeatedly."""
    found: dict[str, Tensor] = dict(root.named_parameters(recurse=False))
    for path, child in root.named_children():
        inner = child
        if isinstance(child, ModulesToSaveWrapper):
            inner = child.original_module
        elif isinstance(child, AuxiliaryTrainingWrapper):
            inner = child.token_adapter.get_base_layer()
        elif isinstance(child, BaseTunerLayer):
            inner = child.get_base_layer()
        found |= {f"{path}.{name}": one for name, one in _all_base_parameters(inner).items()}
    return found


@torch.no_grad()
def _once_per_tensor(root: nn.Module, changes: Mapping[str, _Change]) -> dict[str, _Change]:
    """Keep one change for each tied tensor; refuse it where its names were trained apart."""
    groups: dict[int, list[str]] = {}
    for name, parameter in _all_base_parameters(root).items():
        groups.setdefault(id(parameter), []).append(name)
    dropped: set[str] = set()
    for names in groups.values():
        changed = [name for name in names if name in changes]
        if len(names) == 1 or not changed:
            continue
        first = changes[changed[0]].make()
        agree = all(torch.equal(first, changes[name].make()) for name in changed[1:])
        if len(changed) < len(names) or not agree:
            raise NotMergeable(
                f"{' and '.join(names)} are one tied tensor in the base, but the adapter changes "
                f"them apart ({' and '.join(changed)}): untie them before training"
            )
        dropped.update(changed[1:])
    return {name: change for name, change in changes.items() if name not in dropped}


def _in_place(
    config: Any,
    root: nn.Module,
    changes: Mapping[str, _Change],
    base: Mapping[str, Tensor] | None,
) -> dict[str, _Change]:
    """Return the changes of what the adapter trained in the base itself, such as all biases."""
    parameters = _all_base_parameters(root)
    names = _trained_in_place(getattr(config, "bias", "none"), parameters, changes)
    if names and base is None:
        raise InputError(
            f"the adapter trained {names[0]} and {len(names) - 1} more of the base's own tensors, "
            f"whose start the model no longer holds: pass base=, the model it started from"
        )
    made = {}
    for name in names:
        if base is None or name not in base:
            raise InputError(f"base lacks {name}: pass the model that the adapter started from")
        made[name] = _Change(
            tuple(parameters[name].shape),
            functools.partial(_moved, changes.get(name), parameters[name], base, name),
        )
    return made


def _moved(own: _Change | None, live: Tensor, base: Mapping[str, Tensor], name: str) -> Tensor:
    moved = _subtracted(live.detach(), base[name])
    return moved if own is None else moved + own.make()


def _trained_in_place(
    bias: str, parameters: Mapping[str, Tensor], changes: Mapping[str, _Change]
) -> list[str]:
    # peft's three settings: no bias, every bias of the model, or those of adapted layers only.
    def is_trained_bias(name: str) -> bool:
        return bias != "none" and "bias" in name and (bias == "all" or name in changes)

    return [name for name, one in parameters.items() if one.requires_grad or is_trained_bias(name)]

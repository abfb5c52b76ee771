"""Deltas of peft itself: any type with target modules, put where the selection says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from deltatune.bridges.carrier import Injection, Rhythm
from deltatune.bridges.peft_refusals import check_config
from deltatune.bridges.quiet import quiet
from deltatune.bridges.strict_loading import load_adapter
from deltatune.errors import InputError, NotComposable, NotMergeable
from deltatune.part import Whole
from deltatune.seeds import seed_for
from deltatune.sites import Sites

__all__ = ["AdapterCarrier", "PeftCarrier", "adapted"]


class AdapterCarrier:
    """What all adapters of peft share, ours among them."""

    trains_base = False
    first_export = "merged"

    def rhythm(self, model: nn.Module) -> Rhythm:
        """Ask nothing of the training loop."""
        return Rhythm()

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Switch the adapter off for the length of a block."""
        adapter: Any = model
        switched: AbstractContextManager[Any] = adapter.disable_adapter()
        return switched

    def figures(self, model: nn.Module, sites: Sites) -> Mapping[str, Any]:
        """Record nothing."""
        return {}

    def save(self, model: nn.Module, folder: Path, reload_base: Callable[[], nn.Module]) -> None:
        """Write the adapter in peft's format."""
        # Left to itself peft would write the base's head whole beside an adapter of it.
        model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Return the base with a saved adapter on it."""
        return load_adapter(base, folder)

    def merged(self, model: nn.Module) -> nn.Module:
        """Return the base with the adapter folded in."""
        with quiet():  # it says that a tied head is untied by folding, which is meant
            plain: nn.Module = model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
        return plain


class PeftCarrier(AdapterCarrier):
    """Carries one of peft's own configurations.

    Args:
        delta: without places, which the selection gives.
    """

    def __init__(self, delta: peft.PeftConfig) -> None:
        """Check what can be checked without a model.

        Raises:
            NotComposable: options that would edit the base, or give places of their own.
        """
        check_config(delta)
        self.delta = delta

    def prepare(self, base: nn.Module, injection: Injection) -> nn.Module:
        """Put the adapter into the selected modules.

        Raises:
            InputError: the type does not fit a place.
            NotComposable: the selection takes only a part of a weight.
        """
        config = self.placed(injection)
        # peft draws its start values from the global generator; the state outside stays untouched.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(injection.seed, "adapter"))
            try:
                return adapted(base, config)
            except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
                raise InputError(
                    f"peft's {config.peft_type.value} does not fit the selected places: "
                    f"{' '.join(str(error).split()) or type(error).__name__}"
                ) from error

    def placed(self, injection: Injection) -> Any:
        """Return a copy of the configuration with the selected places in it."""
        config: Any = copy.deepcopy(self.delta)
        config.task_type = injection.task_type
        config.target_modules = _whole_modules(config.peft_type.value, injection)
        sites = [injection.sites.at_weight(weight)[0] for weight in injection.selection]
        if getattr(config, "feedforward_modules", ()) is None:
            # peft would take its own list for the architecture, whatever the selection is.
            config.feedforward_modules = [site.module for site in sites if site.role == "down"]
        if hasattr(config, "fan_in_fan_out"):
            config.fan_in_fan_out = all(site.transposed for site in sites)
        _check_rank(config, injection)
        config.modules_to_save = list(injection.trained_modules) or None
        return config

    def merged(self, model: nn.Module) -> nn.Module:
        """Return the base with the adapter folded in.

        Raises:
            NotMergeable: a type that peft cannot fold.
        """
        _unwrap_trained_modules(model)
        try:
            return super().merged(model)
        except (NotImplementedError, ValueError, AttributeError) as error:
            raise NotMergeable(
                f"peft cannot fold {type(self.delta).__name__} into its base "
                f"({' '.join(str(error).split())}): export with --to peft"
            ) from error

    def save_as_lora(self, model: nn.Module, folder: Path) -> None:
        """Write a LoRA as it is.

        Raises:
            NotMergeable: any other type.
        """
        if self.delta.peft_type is not peft.PeftType.LORA:
            raise NotMergeable(
                f"{type(self.delta).__name__} is no LoRA: export with --to peft or --to merged"
            )
        model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]


def adapted(base: nn.Module, config: peft.PeftConfig) -> nn.Module:
    """Return the base in peft's wrapper, without peft's remarks."""
    with quiet():
        model: nn.Module = peft.get_peft_model(base, config)
    _freeze_constants(model)
    return model


def _freeze_constants(model: nn.Module) -> None:
    """Freeze what peft keeps beside the parameters that train.

    Where the base has another dtype or device peft moves it there, and its containers make a
    trained parameter of what comes back: AdaLoRA would train its number of ranks.
    """
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            for name in layer.other_param_names:
                beside = getattr(layer, name, None)
                if isinstance(beside, nn.ParameterDict):
                    beside.requires_grad_(False)


def _unwrap_trained_modules(model: nn.Module) -> None:
    """Put modules that trained whole back into their places.

    When it folds an adapter in, peft looks for a weight in each of them, which a head of several
    layers does not have.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            parent, _, name = path.rpartition(".")
            whole = module.unload_and_optionally_merge_module(True, True, None)
            setattr(model.get_submodule(parent), name, whole)


def _whole_modules(kind: str, injection: Injection) -> list[str]:
    modules = []
    for weight, part in injection.selection.items():
        if part != Whole():
            raise NotComposable(
                f"peft's {kind} changes whole weights, but the selection takes only a part of "
                f"{weight} (a fused or partly chosen weight): use the delta low_rank instead"
            )
        if injection.sites.tied.get(weight):
            raise NotComposable(
                f"peft's {kind} would be folded into both uses of {weight}, which is tied to "
                f"{injection.sites.tied[weight][0]}, though it acts in one: use the delta low_rank "
                f"for a tied head, or in_place for both uses"
            )
        modules.append(injection.sites.at_weight(weight)[0].module)
    return modules


def _check_rank(config: Any, injection: Injection) -> None:
    """Refuse a LoRA rank above min(out, in), which peft takes: more would only be redundant."""
    field = RANKS.get(config.peft_type)
    if field is None:
        return
    rank: int = getattr(config, field)
    for weight in injection.selection:
        rows: Sequence[Any] = injection.sites.at_weight(weight)  # several, where it is fused
        largest = min(sum(site.out_features for site in rows), rows[0].in_features)
        if rank > largest:
            raise InputError(
                f"{field}={rank} is not allowed: give an integer from 1 to {largest} = "
                f"min(out, in) of {rows[0].module}"
            )


# Types of which a rank above min(out, in) trains more without reaching more.
RANKS = {peft.PeftType.LORA: "r", peft.PeftType.ADALORA: "init_r"}

"""The optimizer of a Trainer, built from groups of names at the moment of use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.training_args import OptimizerNames

from deltatune.bridges.gradient_projection import (
    check_projection,
    is_projected,
    projecting_class,
    with_plain_state,
)
from deltatune.bridges.names import trained_parameters
from deltatune.bridges.trainer import ObjectiveTrainer
from deltatune.errors import InputError, NotComposable
from deltatune.optimizers import check_can_run, check_options, row_of
from deltatune.settings import Optimizer
from deltatune.sites import Sites
from deltatune.updates.groups import plan_groups
from deltatune.updates.update import Group, TrainedParameter, Update

__all__ = ["attach_optimizer", "check_optimizer", "optimizer_class"]

NO_OPTIONS: Mapping[str, Any] = {}
# What transformers returns for optimizers that group the parameters themselves.
OWN_GROUPS = ("params", "model", "optimizer_dict")


def attach_optimizer(
    trainer: Trainer,
    *,
    update: Update,
    sites: Sites,
    learning_rate: float,
    weight_decay: float = 0.0,
    name: str = "adamw_torch",
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> None:
    """Give a Trainer an optimizer whose groups follow an update rule.

    The Trainer reads the factory when it starts training: so this works after it is built (trl's
    DPO and GRPO trainers have no argument for it), on whatever the parameters are then.

    Args:
        trainer: transformers' Trainer or any subclass, before `train()`.
        update: rates and decay of each parameter.
        sites: of the base model.
        learning_rate: of a parameter whose factors are all 1.
        weight_decay: of such a parameter.
        name: of an optimizer, as transformers names it (`adamw_torch`, `adafactor`, `sgd`, ...).
        betas: Adam's decay rates of its moments.
        epsilon: added to Adam's denominator.
        options: what only this optimizer reads.

    Raises:
        InputError: as `optimizer_class`, or a trainer that has its optimizer already.
        NotComposable: when training starts, gradients that are clipped apart in a plain Trainer.
    """
    _check_has_none(trainer)
    check_options(name, options)
    chosen, arguments = optimizer_class(
        trainer, name, learning_rate=learning_rate, betas=betas, epsilon=epsilon
    )
    own = {**row_of(name).options, **options}
    kind = type(trainer)  # the trainer keeps `build`, which must not keep the trainer

    def build(model: nn.Module) -> torch.optim.Optimizer:
        trained = trained_parameters(model, sites)
        groups = plan_groups(
            trained, update, sites, learning_rate=learning_rate, weight_decay=weight_decay
        )
        _check_clips(kind, groups)
        parameters = dict(model.named_parameters())
        made = [_parameter_group(group, parameters) for group in groups]
        if not row_of(name).projects:
            return _built(chosen, name, made, {**arguments, **own})
        check_projection(name, trained, own)
        projected = [{**group, **(own if is_projected(group["label"]) else {})} for group in made]
        return with_plain_state(_built(chosen, name, projected, arguments))

    # The Trainer calls a factory to get the builder, and the builder with the model.
    trainer.optimizer_cls_and_kwargs = (lambda: build, {})  # type: ignore[assignment]


def _check_clips(trainer_class: type[Trainer], groups: Sequence[Group]) -> None:
    apart = sorted({group.clipped_with for group in groups} - {""})
    if apart and not issubclass(trainer_class, ObjectiveTrainer):
        raise NotComposable(
            f"the update clips the gradients of {', '.join(apart)} apart, which a plain "
            f"{trainer_class.__name__} cannot do: make its class with recipe.trainer_class"
        )


def _built(
    chosen: Callable[..., torch.optim.Optimizer],
    name: str,
    groups: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
) -> torch.optim.Optimizer:
    try:
        return chosen(groups, **arguments)
    except ValueError as error:  # how optimizers refuse values, alone or together
        raise InputError(
            f"optimizer {name!r} refuses what optimizer.options and its other settings give it: "
            f"{error}: correct them"
        ) from error


def _check_has_none(trainer: Trainer) -> None:
    if trainer.optimizer is not None:
        raise InputError(
            "the trainer already has an optimizer: give it none, and attach before train()"
        )


def _parameter_group(group: Group, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    return {
        "params": [parameters[name] for name in group.names],
        "lr": group.learning_rate,
        "weight_decay": group.weight_decay,
        "label": group.label,
        "clipped_with": group.clipped_with,
    }


def check_optimizer(optimizer: Optimizer, trained: Sequence[TrainedParameter]) -> None:
    """Refuse, before anything trains, an optimizer that cannot run here or not on what trains.

    Raises:
        InputError: a package or device that is missing, or an option that does not fit.
        NotComposable: what trains has nothing that the optimizer could act on.
    """
    check_can_run(optimizer.name)
    row = row_of(optimizer.name)
    if row.projects:
        check_projection(optimizer.name, trained, {**row.options, **optimizer.options})


def optimizer_class(
    trainer: Trainer,
    name: str,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
) -> tuple[Callable[..., torch.optim.Optimizer], Mapping[str, Any]]:
    """Resolve an optimizer by transformers' own name for it.

    Raises:
        InputError: an unknown name, or one whose package is missing.
        NotComposable: an optimizer that forms its own groups.
    """
    check_can_run(name)
    if row_of(name).projects:
        return projecting_class(name), {"lr": learning_rate, "betas": betas, "eps": epsilon}
    arguments = copy.copy(trainer.args)
    arguments.optim = OptimizerNames(name)
    arguments.learning_rate = learning_rate
    arguments.adam_beta1, arguments.adam_beta2 = betas
    arguments.adam_epsilon = epsilon
    try:
        chosen, options = trainer.get_optimizer_cls_and_kwargs(arguments, trainer.model)  # type: ignore[arg-type]
    except ImportError as error:
        raise InputError(f"optimizer {name!r} needs a package that is missing: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise InputError(f"optimizer {name!r} cannot be used here: {error}") from error
    is_class = isinstance(chosen, type) and issubclass(chosen, torch.optim.Optimizer)
    if not is_class or any(key in options for key in OWN_GROUPS):
        raise NotComposable(
            f"optimizer {name!r} forms its own groups of parameters, which leaves no place for the "
            f"update's rates: choose another, such as 'adamw_torch'"
        )
    _check_is_read(name, "betas", betas, options)
    _check_is_read(name, "eps", epsilon, options)
    return chosen, options


def _check_is_read(name: str, key: str, given: Any, options: Mapping[str, Any]) -> None:
    field = {"betas": "betas", "eps": "epsilon"}[key]
    default = getattr(Optimizer(), field)
    if key not in options and given != default:
        raise InputError(
            f"optimizer.{field}={given} is read by no {name!r}: leave it at {default}, or choose "
            f"an optimizer of Adam's kind"
        )

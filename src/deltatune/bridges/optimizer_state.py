"""An optimizer's state by parameter name, so that it can be stored and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deltatune.errors import InputError, WorkError

__all__ = ["load_optimizer_state", "named_state", "parameter_names"]


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """Return index in the optimizer's state -> name of the parameter in the model.

    PyTorch numbers parameters through all groups in their order.

    Raises:
        WorkError: the optimizer holds a tensor that is no parameter of the model.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    unknown = [i for i, parameter in enumerate(parameters) if id(parameter) not in names]
    if unknown:
        raise WorkError(
            f"the optimizer trains {len(unknown)} tensors that the model does not name: build it "
            f"from the parameters of the model as it is"
        )
    return {i: names[id(parameter)] for i, parameter in enumerate(parameters)}


def named_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """Return groups and state with names in place of numbers."""
    state = optimizer.state_dict()
    return {
        "groups": [
            {**group, "params": [names[i] for i in group["params"]]}
            for group in state["param_groups"]
        ],
        "state": {names[i]: values for i, values in state["state"].items()},
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], saved: Mapping[str, Any]
) -> None:
    """Load what `named_state` gave.

    Raises:
        InputError: the groups are others than those that were saved, with the first difference;
            state is kept per group, so it cannot go on in another grouping.
    """
    live = named_state(optimizer, names)
    _check_same_groups(
        [group["params"] for group in saved["groups"]],
        [group["params"] for group in live["groups"]],
    )
    numbers = {name: i for i, name in names.items()}
    optimizer.load_state_dict(
        {
            "state": {numbers[name]: values for name, values in saved["state"].items()},
            "param_groups": [
                {**group, "params": [numbers[name] for name in group["params"]]}
                for group in saved["groups"]
            ],
        }
    )


def _check_same_groups(saved: list[list[str]], live: list[list[str]]) -> None:
    fix = "resume with the recipe that the run began with"
    saved_group = {name: i for i, names in enumerate(saved) for name in names}
    live_group = {name: i for i, names in enumerate(live) for name in names}
    for name in [*live_group, *saved_group]:
        if name not in saved_group:
            raise InputError(f"the checkpoint has no optimizer state for {name}: {fix}")
        if name not in live_group:
            raise InputError(f"the checkpoint has optimizer state for {name}, frozen here: {fix}")
        if saved_group[name] != live_group[name]:
            raise InputError(
                f"{name} was in optimizer group {saved_group[name]} and is in group "
                f"{live_group[name]} now: {fix}"
            )
    if saved != live:
        raise InputError(f"the optimizer's groups hold their parameters in another order: {fix}")

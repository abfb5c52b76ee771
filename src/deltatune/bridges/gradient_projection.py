"""GaLore: optimizers that keep their moments in a low-rank projection of the gradient.

The implementation is that of the package pytorch-optimizer. It keeps an object with each weight's
state, which no plain file can hold; here that becomes tensors and numbers and comes back.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from deltatune.errors import InputError, NotComposable
from deltatune.sites import PROJECTIONS
from deltatune.updates.update import TrainedParameter

__all__ = ["check_projection", "is_projected", "projecting_class", "with_plain_state"]

# Name of an optimizer -> its class in pytorch-optimizer.
CLASSES: Mapping[str, str] = {"galore_adamw": "GaLore"}
KINDS = ("std", "reverse_std", "right", "left")
# What an object of the package changes after it was made; the rest stands in the group.
CHANGING = ("ortho_matrix", "last_svd_step")


def projecting_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of an optimizer that projects; its package must be installed."""
    chosen: Callable[..., torch.optim.Optimizer] = getattr(
        importlib.import_module("pytorch_optimizer"), CLASSES[name]
    )
    return chosen


def is_projected(label: str) -> bool:
    """Tell whether the weights of a group are projected: those of projections, by its role.

    Heads, embeddings and norms are trained by the same rule without a projection, and so are the
    biases of a projection, which are no matrices.
    """
    return label.split(" ")[0] in PROJECTIONS


def check_projection(
    name: str, trained: Sequence[TrainedParameter], options: Mapping[str, Any]
) -> None:
    """Refuse what cannot be projected.

    Args:
        name: of the optimizer.
        trained: all that trains.
        options: `rank`, `scale`, `projection_type`.

    Raises:
        NotComposable: an adapter trains, whose factors are small already, or weights that are no
            matrices; or no projection trains.
        InputError: a rank above a side of a weight, an unknown kind of projection, a scale that is
            not above 0.
    """
    if not (math.isfinite(options["scale"]) and options["scale"] > 0):
        raise InputError(
            f"scale={options['scale']} is not allowed: give a finite number above 0, such as 4.0"
        )
    if options["projection_type"] not in KINDS:
        raise InputError(
            f"projection_type={options['projection_type']!r} is not allowed: give one of "
            f"{', '.join(KINDS)}"
        )
    found = [one for one in trained if one.role in PROJECTIONS and one.part_role != "bias"]
    for one in found:
        if one.part_role != "weight" or len(one.shape) != 2:
            raise NotComposable(
                f"the optimizer {name!r} projects the gradients of whole weights, and {one.name} "
                f"is none: train the base itself with delta=in_place, or choose another optimizer"
            )
        if options["rank"] > min(one.shape):
            raise InputError(
                f"rank={options['rank']} is not allowed: give an integer from 1 to "
                f"{min(one.shape)} = min(out, in) of {one.name}"
            )
    if not found:
        raise NotComposable(
            f"the optimizer {name!r} projects the gradients of projections, and none trains: "
            f"select some, or choose another optimizer"
        )


def with_plain_state(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let an optimizer's `state_dict` hold plain values only, and take them back; return it."""
    optimizer.register_state_dict_post_hook(_plain)
    # Not when it is loaded: the package's own loading walks through the values once more after it.
    optimizer.register_step_pre_hook(lambda owner, *_: _restore(owner))
    return optimizer


def _plain(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put values in the place of objects, in a copy: the live state stays as it is."""
    for number, own in state["state"].items():
        if "projector" in own and not isinstance(own["projector"], Mapping):
            values = {key: getattr(own["projector"], key) for key in CHANGING}
            state["state"][number] = {**own, "projector": values}


def _restore(optimizer: torch.optim.Optimizer) -> None:
    module = importlib.import_module("pytorch_optimizer.optimizer.utils.galore")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state[parameter]
            if isinstance(own.get("projector"), Mapping):
                options = ("rank", "update_proj_gap", "scale", "projection_type")
                projector = module.GaLoreProjector(**{key: group[key] for key in options})
                for key in CHANGING:
                    setattr(projector, key, own["projector"][key])
                own["projector"] = projector

"""A recipe in somebody else's training script: prepare any base, attach to any trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer

from deltatune import sites
from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.carriers import Injection
from deltatune.bridges.optimizer import attach_optimizer
from deltatune.bridges.quantized import keep_trainable
from deltatune.bridges.rhythm import keep_rhythm
from deltatune.bridges.trainer import ObjectiveTrainer, with_objective
from deltatune.bridges.unedited import unedited
from deltatune.calibration import Calibration
from deltatune.coverage import Coverage, gate
from deltatune.errors import InputError, NotComposable
from deltatune.part import Selection
from deltatune.role_probe import check_given_roles
from deltatune.seeds import generator_for
from deltatune.sites import Sites
from deltatune.statistics import Measurements, check_needs

if TYPE_CHECKING:  # recipe.py imports this module
    from deltatune.recipe import Recipe

__all__ = ["attach", "calibration_on", "inject", "prepare", "select", "trainer_class"]

# Places are named before the delta goes in, a trainer is met after: the model carries them.
_SITES = "deltatune_sites"


def calibration_on(
    recipe: Recipe, dataloader: Iterable[Mapping[str, Any]] | None, objective: Any = None
) -> Calibration | None:
    """Return what the recipe's parts are measured on, or None where there are no examples.

    Args:
        recipe: its objective is the loss, and its seed that of the order.
        dataloader: batches of training examples, never of examples that are held out.
        objective: the loss where the recipe leaves it open.
    """
    if dataloader is None:
        return None
    return Calibration(
        batches=dataloader, objective=recipe.objective or objective, seed=recipe.training.seed
    )


def select(
    recipe: Recipe, model: nn.Module, calibration: Calibration | None = None
) -> tuple[Sites, Selection, Coverage]:
    """Name the places of a model, select among them, and pass the coverage gate.

    Raises:
        InputError: nothing or only a part is reached, there is nothing to measure on, or a row acts
            as another role than the recipe's map says.
    """
    needs = check_needs(recipe.selection, calibration)
    places = sites.of(model, roles=recipe.roles)
    check_given_roles(model, places, recipe.roles)
    statistics = None
    if needs and calibration is not None:
        statistics = Measurements(model=model, sites=places, calibration=calibration, needs=needs)
    selection = recipe.selection(
        model,
        places,
        statistics=statistics,
        generator=generator_for(recipe.training.seed, "selection"),
    )
    return places, selection, gate(places, selection, recipe.selection)


def prepare(
    recipe: Recipe,
    base: nn.Module,
    dataloader: Iterable[Mapping[str, Any]] | None = None,
    *,
    trained_modules: Sequence[str] = (),
    task_type: str | None = None,
) -> nn.Module:
    """Put the recipe's delta into a base model."""
    calibration = calibration_on(recipe, dataloader)
    places, selection, _ = select(recipe, base, calibration)
    model = inject(
        recipe,
        base,
        places,
        selection,
        trained_modules=trained_modules,
        task_type=task_type,
        calibration=calibration,
    )
    setattr(model, _SITES, places)
    return model


def inject(
    recipe: Recipe,
    base: nn.Module,
    places: Sites,
    selection: Selection,
    *,
    trained_modules: Sequence[str],
    task_type: str | None,
    calibration: Calibration | None = None,
) -> nn.Module:
    """Put the recipe's delta into the selected places of a base model.

    Raises:
        NotComposable: an adapter whose start would edit the base.
    """
    injection = Injection(
        sites=places,
        selection=selection,
        trained_modules=trained_modules,
        seed=recipe.training.seed,
        task_type=task_type,
        calibration=calibration,
    )
    carrier = recipe.carrier()
    keep_trainable(base)
    if carrier.trains_base:
        return carrier.prepare(base, injection)
    with unedited(base, f"the delta {type(recipe.delta).__name__}"):
        return carrier.prepare(base, injection)


def trainer_class(recipe: Recipe, cls: type[Trainer]) -> type[Trainer]:
    """Return a subclass of `cls` that computes the recipe's objective, if it has one."""
    made: Any = with_objective(cls)

    class WithRecipe(made):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, objective=recipe.objective, **kwargs)

    WithRecipe.__name__ = f"Recipe{cls.__name__}"
    return WithRecipe


def attach(recipe: Recipe, trainer: Trainer) -> Trainer:
    """Give a trainer the recipe's optimizer groups and rhythm.

    Raises:
        InputError: its model was not prepared by a recipe.
    """
    places: Any = getattr(trainer.model, _SITES, None)
    if places is None:
        raise InputError(
            "the trainer's model was not prepared by a recipe: give it recipe.prepare(base)"
        )
    attach_optimizer(
        trainer, update=recipe.update, sites=places, **dataclasses.asdict(recipe.optimizer)
    )
    model: Any = trainer.model
    rhythm = recipe.carrier().rhythm(model)
    keep_rhythm(trainer, rhythm)
    if isinstance(trainer, ObjectiveTrainer):
        trainer.add_callback(
            DeltaCallback(trainer, update=recipe.update, sites=places, may_rest=rhythm.may_rest)
        )
    elif recipe.update.changes_who_trains:
        raise NotComposable(
            f"the update {type(recipe.update).__name__} changes who trains, which a plain "
            f"{type(trainer).__name__} cannot do: make its class with recipe.trainer_class"
        )
    return trainer

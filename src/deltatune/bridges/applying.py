"""A recipe in somebody else's training script: prepare any base, attach to any trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer

from deltatune import sites
from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.carriers import Injection, carrier_of
from deltatune.bridges.optimizer import attach_optimizer
from deltatune.bridges.trainer import ObjectiveTrainer, with_objective
from deltatune.coverage import Coverage, gate
from deltatune.errors import InputError, NotComposable
from deltatune.part import Selection
from deltatune.seeds import generator_for
from deltatune.sites import Sites

if TYPE_CHECKING:  # recipe.py imports this module
    from deltatune.recipe import Recipe

__all__ = ["attach", "inject", "prepare", "select", "trainer_class"]

# Places are named before the delta goes in, a trainer is met after: the model carries them.
_SITES = "deltatune_sites"


def select(recipe: Recipe, model: nn.Module) -> tuple[Sites, Selection, Coverage]:
    """Name the places of a model, select among them, and pass the coverage gate."""
    places = sites.of(model, roles=recipe.roles)
    selection = recipe.selection(
        model, places, generator=generator_for(recipe.training.seed, "selection")
    )
    return places, selection, gate(places, selection, recipe.selection)


def prepare(
    recipe: Recipe,
    base: nn.Module,
    *,
    trained_modules: Sequence[str] = (),
    task_type: str | None = None,
) -> nn.Module:
    """Put the recipe's delta into a base model."""
    places, selection, _ = select(recipe, base)
    model = inject(
        recipe, base, places, selection, trained_modules=trained_modules, task_type=task_type
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
) -> nn.Module:
    """Put the recipe's delta into the selected places of a base model."""
    injection = Injection(
        sites=places,
        selection=selection,
        trained_modules=trained_modules,
        seed=recipe.training.seed,
        task_type=task_type,
    )
    return carrier_of(recipe.delta).prepare(base, injection)


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
    if isinstance(trainer, ObjectiveTrainer):
        trainer.add_callback(DeltaCallback(trainer, update=recipe.update, sites=places))
    elif recipe.update.changes_who_trains:
        raise NotComposable(
            f"the update {type(recipe.update).__name__} changes who trains, which a plain "
            f"{type(trainer).__name__} cannot do: make its class with recipe.trainer_class"
        )
    return trainer

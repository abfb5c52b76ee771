"""The recipes that are compared: named, told apart, and set to the same conditions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from deltatune import parts
from deltatune.comparison.jobs import file_name
from deltatune.comparison.terms import OF_BUDGET
from deltatune.errors import InputError
from deltatune.recipe import Recipe, read
from deltatune.settings import Training

__all__ = ["SHARED", "Contestant", "contestants"]

# What decides how much a run sees, and in which precision: the same for all that are compared.
# Schedule, warm-up and the bound on gradients belong to a recipe.
SHARED = (
    "accumulation",
    "base_dropout",
    "batch_size",
    "epochs",
    "groups_by_length",
    "max_length",
    "packing",
    "precision",
    "seed",
    "steps",
)
LONGEST_NAME = 150  # bytes in names of files, which may have 255, with kind, seed and ending
EXPONENT = 0.5  # of ten, between one learning rate that is tried and the next

Given = str | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A recipe under a name of its own, with the settings that all share.

    Args:
        name: tells it from the others, in tables and in names of files.
        source: a recipe, or a name or path to read one from.
        assignments: parameters and fields that were given with it.
        training: the settings that all share, and others.
        notes: what of its own settings was replaced.
    """

    name: str
    source: Any
    assignments: Mapping[str, Any]
    training: Training
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe with the shared settings."""
        return self.at({})

    @property
    def learning_rate(self) -> float:
        """The recipe's own rate; parts scale theirs by it, so a factor on it moves them all."""
        return self.recipe.optimizer.learning_rate

    def rates(self, trials: int) -> list[float]:
        """Return the rates to try: a logarithmic grid about the recipe's own, which is in it.

        Neighbours are half a decade apart. An even number has one more above than below.

        Args:
            trials: how many, from 1 up.
        """
        below = (trials - 1) // 2
        return [
            float(f"{self.learning_rate * 10 ** (EXPONENT * (i - below)):.4g}")
            for i in range(trials)
        ]

    def at(self, settings: Mapping[str, Any]) -> Recipe:
        """Return the recipe of one run: parameters of the recipe and fields replaced.

        Raises:
            InputError: it has no such parameter or field.
        """
        of_run = {path: value for path, value in settings.items() if path.startswith("training.")}
        own = {path: value for path, value in settings.items() if path not in of_run}
        made = _made(self.source, {**self.assignments, **own})
        same = {field: getattr(self.training, field) for field in SHARED}
        return dataclasses.replace(
            made, training=dataclasses.replace(made.training, **same)
        ).with_fields(of_run)


def contestants(given: Given, shared: Mapping[str, Any]) -> list[Contestant]:
    """Read what is to be compared.

    Args:
        given: `"lora,efficientft:host=dora:targets=qkv,mine=my.yaml"`, a sequence of such names or
            of recipes, or a mapping of name -> such a name or recipe. A name is one of the
            catalogue or a path of a YAML file, with parameters and fields behind colons.
        shared: field of `training` -> value, for all.

    Raises:
        InputError: no recipe, two of one name, a name that is empty or too long, an unknown recipe
            or field, or a shared setting that is none.
    """
    training = _training(shared)
    named = _named(given)
    if not named:
        raise InputError("no recipe is given: name at least one, for example lora,efficientft")
    found = [_contestant(name, source, training) for name, source in named]
    places: dict[str, str] = {}
    for one in found:
        place = file_name(one.name).lower()  # some file systems know no capitals
        if not one.name.strip() or len(place.encode()) > LONGEST_NAME:
            raise InputError(
                f"recipe name {one.name!r} is not allowed, since files bear it: give it a name of "
                f"1 to {LONGEST_NAME} letters, NAME=RECIPE"
            )
        if place in places:
            both = f"{places[place]!r} and {one.name!r}"
            raise InputError(
                f"recipes {both} would have one name in files: give one another, NAME=RECIPE"
            )
        places[place] = one.name
    return found


def _training(shared: Mapping[str, Any]) -> Training:
    """Return the settings of all, checked."""
    fields = {}
    for path, value in shared.items():
        room, _, field = path.partition(".")
        if room != "training" or field not in SHARED or field in OF_BUDGET:
            allowed = ", ".join(f"training.{name}" for name in SHARED if name not in OF_BUDGET)
            raise InputError(
                f"{path!r} cannot be set for all recipes: allowed are {allowed}; the budget and "
                f"the seeds set the rest, and a recipe's own fields go behind its name "
                f"(lora:delta.rank=4)"
            )
        fields[field] = value
    made: Training = parts.validated(Training, fields, "training")
    return made


def _named(given: Given) -> list[tuple[str, Any]]:
    if isinstance(given, Mapping):
        return [(str(name), source) for name, source in given.items()]
    items = given.split(",") if isinstance(given, str) else given
    return [_with_name(item) for item in items if not isinstance(item, str) or item.strip()]


def _with_name(item: Any) -> tuple[str, Any]:
    if isinstance(item, Recipe):
        return item.name, item
    text = str(item).strip()
    first, equals, rest = text.partition("=")
    if equals and ":" not in first:
        return first.strip(), rest.strip()
    return text, text


def _contestant(name: str, source: Any, training: Training) -> Contestant:
    assignments: dict[str, Any] = {}
    try:
        if not isinstance(source, Recipe):
            source, assignments = _taken_apart(str(source))
        own = _made(source, assignments).training
    except InputError as error:
        said = "" if name == source else f"recipe {name!r}: "
        raise type(error)(f"{said}{error}") from error
    notes, usual = [], Training()
    for field in SHARED:
        theirs, all_have = getattr(own, field), getattr(training, field)
        if field not in OF_BUDGET and theirs not in (all_have, getattr(usual, field)):
            notes.append(f"training.{field}={theirs} of its own is {all_have} here, as for all")
    return Contestant(
        name=name, source=source, assignments=assignments, training=training, notes=tuple(notes)
    )


def _taken_apart(text: str) -> tuple[str, dict[str, Any]]:
    source, *options = text.split(":")
    assignments = {}
    for option in options:
        field, equals, value = option.partition("=")
        if not equals:
            raise InputError(
                f"{option!r} has no '=': write RECIPE:FIELD=VALUE, for example lora:delta.rank=4"
            )
        try:
            assignments[field.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(
                f"{option!r} is not readable: commas and colons part recipes and fields here, so "
                f"put such a value into a YAML file and name that, NAME=FILE.yaml"
            ) from error
    return source.strip(), assignments


def _made(source: Any, assignments: Mapping[str, Any]) -> Recipe:
    if isinstance(source, Recipe):
        return source.with_fields(assignments)
    return read(source, assignments)

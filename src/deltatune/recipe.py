"""A recipe: which delta, where, at which rates, for which loss; checked before anything runs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import yaml
from torch import nn
from transformers import Trainer

from deltatune import parts
from deltatune.bridges import applying, carriers, delta_forms
from deltatune.coverage import Coverage
from deltatune.errors import InputError, unknown_name
from deltatune.field_errors import explained
from deltatune.schema_definitions import gathered
from deltatune.selections.by_role import ByRole
from deltatune.settings import Optimizer, Training
from deltatune.updates.ratios import Ratios

__all__ = [
    "InPlace",
    "Optimizer",
    "Recipe",
    "Training",
    "from_plain",
    "hosted",
    "json_schema",
    "named",
    "read",
]

InPlace = carriers.InPlace
NEAREST = 5  # names in the answer to an unknown field; a recipe has some fifty
FREE = (["roles"], ["optimizer", "options"])  # mappings that a user adds keys to


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way of fine-tuning, independent of model and data.

    Args:
        name: for tables and files.
        delta: options of a delta of ours, any `peft.PeftConfig`, or `InPlace()`.
        selection: where the delta may live.
        update: rates and rhythm.
        objective: the loss; None takes the one that the data's task declares as its own.
        block: what is no change of weights, around the delta; None for none.
        optimizer: the step rule.
        training: length and portions.
        roles: module path pattern -> role, for an architecture that deltatune does not know.
    """

    name: str = "custom"
    delta: Any
    selection: Any = field(default_factory=lambda: ByRole(roles=("query", "value")))
    update: Any = field(default_factory=Ratios)
    objective: Any = None
    block: Any = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts.declaration_of(self.selection, "selections")
        parts.declaration_of(self.update, "updates")
        if self.objective is not None:
            parts.declaration_of(self.objective, "objectives")
        self.carrier()

    def carrier(self) -> carriers.Carrier:
        """Return what puts delta and block into a model, and takes them out.

        Raises:
            InputError: `delta` or `block` is none.
        """
        return carriers.carrier_for(self.delta, self.block, self.roles)

    def check(
        self, model: nn.Module, dataloader: Iterable[Mapping[str, Any]] | None = None
    ) -> Coverage:
        """Select on a model and check what was reached, without changing it.

        Raises:
            InputError: the selection reaches nothing, or only a part (the coverage gate); it
                measures the model, and there is no `dataloader` (see `prepare`).
        """
        return applying.select(self, model, applying.calibration_on(self, dataloader))[2]

    def prepare(
        self,
        base: nn.Module,
        dataloader: Iterable[Mapping[str, Any]] | None = None,
        *,
        trained_modules: Sequence[str] = (),
        task_type: str | None = None,
    ) -> nn.Module:
        """Put the delta into a base model and freeze the rest.

        Args:
            base: a model without adapters.
            dataloader: batches of training examples (mappings of the model's inputs, with
                `labels`), for the parts that measure the model first; a `DataLoader` or a list.
            trained_modules: names of modules that train whole beside the delta (a fresh head).
            task_type: peft's name of the task (`SEQ_CLS`, `CAUSAL_LM`), or None.

        Returns:
            The model to give to any trainer.
        """
        return applying.prepare(
            self, base, dataloader, trained_modules=trained_modules, task_type=task_type
        )

    def trainer_class(self, cls: type[Trainer]) -> type[Trainer]:
        """Return a subclass of a trainer class that computes this recipe's objective."""
        return applying.trainer_class(self, cls)

    def attach(self, trainer: Trainer) -> Trainer:
        """Give a trainer of a prepared model this recipe's groups and rhythm; return it."""
        return applying.attach(self, trainer)

    def to_plain(self) -> dict[str, Any]:
        """Return the recipe as plain values, the form of its YAML file."""
        return {
            "name": self.name,
            "delta": delta_forms.delta_to_plain(self.delta),
            "selection": parts.to_plain(self.selection, "selections"),
            "update": parts.to_plain(self.update, "updates"),
            "objective": self.objective and parts.to_plain(self.objective, "objectives"),
            "block": self.block and parts.to_plain(self.block, "blocks"),
            "optimizer": _plain_fields(self.optimizer),
            "training": _plain_fields(self.training),
            "roles": dict(self.roles),
        }

    def to_yaml(self) -> str:
        """Return the recipe as YAML text; `from_plain` of the loaded text gives the recipe back."""
        return yaml.safe_dump(self.to_plain(), sort_keys=False)

    def with_fields(self, assignments: Mapping[str, Any]) -> Recipe:
        """Return a copy with single fields replaced, by dotted path (`training.epochs`)."""
        plain = self.to_plain()
        for path, value in assignments.items():
            _assign(plain, path, value)
        return from_plain(plain)


def _plain_fields(options: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(options)
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()
    }


def _assign(plain: dict[str, Any], path: str, value: Any) -> None:
    """Set one field by dotted path; a part replaced by name starts from its defaults."""
    *parents, last = path.split(".")
    place: Any = plain
    for i, key in enumerate(parents):
        if not isinstance(place, Mapping) or key not in place:
            raise _unknown_field(path, plain)
        place = place[key]
        if place is None or not isinstance(place, dict):
            raise InputError(f"{'.'.join(parents[: i + 1])} has no fields: set it as a whole first")
    part_fields = ("kind" in place and bool(parents)) or parents in FREE
    if last not in place and not part_fields:
        raise _unknown_field(path, plain)
    place[last] = value


def _unknown_field(path: str, plain: Mapping[str, Any]) -> InputError:
    return unknown_name("field", path, _paths(plain), limit=NEAREST, all_in="deltatune schema")


def _paths(plain: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in plain.items():
        found.append(prefix + key)
        if isinstance(value, Mapping):
            found += _paths(value, f"{prefix}{key}.")
    return found


def from_plain(plain: Any) -> Recipe:
    """Build a recipe from plain values, naming the first mistake and the nearest allowed name.

    Raises:
        InputError: an unknown key or name, a missing or impossible value.
    """
    if not isinstance(plain, Mapping):
        raise InputError(f"the recipe is {plain!r}: give a mapping with the key 'delta'")
    names = [entry.name for entry in dataclasses.fields(Recipe)]
    for key in plain:
        if key not in names:
            raise unknown_name("recipe key", key, names)
    if "delta" not in plain:
        raise InputError("the recipe has no key 'delta': give the delta that it trains")
    values: dict[str, Any] = {"delta": delta_forms.delta_from_plain(plain["delta"])}
    for key, room in (
        ("selection", "selections"),
        ("update", "updates"),
        ("objective", "objectives"),
        ("block", "blocks"),
    ):
        if plain.get(key) is not None:
            values[key] = parts.from_plain(plain[key], room, where=key)
    for key, options in (("optimizer", Optimizer), ("training", Training)):
        if key in plain:
            if not isinstance(plain[key], Mapping):
                raise InputError(f"{key} is {plain[key]!r}: give a mapping of its fields")
            values[key] = parts.validated(options, plain[key], key)
    if "name" in plain:
        values["name"] = str(plain["name"])
    if plain.get("roles"):
        values["roles"] = _role_map(plain["roles"])
    return Recipe(**values)


def _role_map(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping) or not all(isinstance(role, str) for role in given.values()):
        raise InputError(f"roles is {given!r}: give a mapping of module path pattern to role")
    return {str(pattern): role for pattern, role in given.items()}


def named(name: str, assignments: Mapping[str, Any] | None = None) -> Recipe:
    """Make a recipe of the catalogue, with single values replaced.

    Args:
        name: a name of `deltatune recipes`.
        assignments: a parameter of the recipe's function, or the dotted path of a field, -> value.

    Raises:
        InputError: an unknown recipe, parameter or field, nearest names first.
    """
    catalogue = parts.known("recipes")
    if name not in catalogue:
        raise unknown_name("recipe", name, catalogue)
    function = catalogue[name].implementation
    parameters = inspect.signature(function).parameters
    given = dict(assignments or {})
    arguments = {key: given.pop(key) for key in list(given) if key in parameters}
    try:
        recipe: Recipe = pydantic.validate_call(function)(**arguments)
    except pydantic.ValidationError as error:
        raise explained(error, arguments, "") from error
    known = [*parameters, *_paths(recipe.to_plain())]
    _check_fields(given, known, f"deltatune recipes {name}")
    return recipe.with_fields(given) if given else recipe


def hosted(given: Any) -> Recipe:
    """Return the recipe that a strategy goes on top of.

    Args:
        given: a recipe, its name, or a mapping of its name and parameters.

    Raises:
        InputError: something else.
    """
    if isinstance(given, str):
        given = {"name": given}
    if isinstance(given, Mapping) and "name" in given:
        given = named(given["name"], {key: given[key] for key in given if key != "name"})
    if not isinstance(given, Recipe):
        raise InputError(
            f"host={given!r} is not allowed: give a recipe, its name, or a mapping of its name and "
            f"parameters, such as {{name: lora, rank: 16}}"
        )
    return given


def _check_fields(given: Iterable[str], known: Sequence[str], all_in: str) -> None:
    top_level = [entry.name for entry in dataclasses.fields(Recipe)]
    for key in given:
        if "." not in key and key not in top_level:
            raise unknown_name("field", key, known, limit=NEAREST, all_in=all_in)


def read(source: str | Path, assignments: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe: the name of one of the catalogue, or the path of a YAML file.

    Raises:
        InputError: a missing file, broken YAML (with its line), or anything `from_plain` refuses.
    """
    text = str(source)
    if not text.endswith((".yaml", ".yml")):
        return named(text, assignments)
    path = Path(text)
    if not path.is_file():
        raise InputError(
            f"recipe file {text!r} does not exist: give a path or a name of the catalogue"
        )
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"recipe file {text!r} is not readable YAML: {_one_line(error)}"
        ) from error
    return from_plain(plain).with_fields(assignments or {})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file."""
    properties: dict[str, Any] = {
        "name": {"type": "string"},
        "delta": delta_forms.delta_schema(),
        "selection": parts.json_schema("selections"),
        "update": parts.json_schema("updates"),
        "objective": {"anyOf": [parts.json_schema("objectives"), {"type": "null"}]},
        "block": {"anyOf": [parts.json_schema("blocks"), {"type": "null"}]},
        "optimizer": pydantic.TypeAdapter(Optimizer).json_schema(),
        "training": pydantic.TypeAdapter(Training).json_schema(),
        "roles": {"type": "object", "additionalProperties": {"type": "string"}},
    }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "deltatune recipe",
        "type": "object",
        "properties": properties,
        "required": ["delta"],
        "additionalProperties": False,
    }
    return gathered(schema)

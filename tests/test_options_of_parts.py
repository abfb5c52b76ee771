"""Every option of every declared part, and every parameter of a recipe, changes what it is for.

The other value follows from the default's type; where it cannot, the tables below give it. A new
part is covered without a row here, unless its options are texts, lists or parts.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from deltatune import parts, sites
from deltatune.bridges import applying
from deltatune.bridges.carriers import Injection, carrier_of
from deltatune.bridges.names import trained_parameters
from deltatune.deltas.low_rank import LowRank
from deltatune.errors import InputError
from deltatune.recipe import Recipe, named
from deltatune.selections.by_role import ByRole
from deltatune.updates.alternate import Phase
from deltatune.updates.groups import plan_groups
from deltatune.updates.lora_plus import LoraPlus
from deltatune.updates.update import TrainedParameter
from tests.adapters import options_of, selection_for, shaken, token_ids
from tests.calibrated import calibration_for
from tests.decoder_models import decoder
from tests.models import tiny
from tests.training import lora_llama

# What a run is made of.
ROOMS = ("deltas", "selections", "updates", "objectives", "blocks", "recipes")
Row = tuple[dict[str, Any], Any]  # options of both sides, other value
BY_TURNS = (Phase(parts=("up",), steps=1), Phase(parts=("down",), steps=1))

ROWS: dict[str, Row] = {
    "deltas.cosine.batches": ({"locations": "gradient"}, 1),
    "deltas.cosine.location_gradient": ({"locations": "low_frequency"}, "authors"),
    "deltas.cosine.way": ({"way": "factored"}, "dense"),
    "deltas.sum.terms": ({}, (LowRank(rank=1), LowRank(rank=1))),
    "selections.by_role.roles": ({}, ("query",)),
    "selections.by_role.layers": ({}, (1,)),
    "selections.by_role.allow_partial": ({}, None),
    "selections.by_role.allow_tied": ({"roles": ("head",)}, True),
    "selections.by_role.allow_absent": ({"roles": ("query", "other")}, True),
    "selections.by_pattern.patterns": ({"patterns": ("q_proj",)}, ("v_proj",)),
    "selections.by_pattern.layers": ({"patterns": ("q_proj",)}, (1,)),
    "selections.by_pattern.allow_partial": ({"patterns": ("0.self_attn.q_proj",)}, True),
    "selections.by_pattern.allow_tied": ({"patterns": ("lm_head",)}, True),
    "selections.explicit.weights": (
        {"weights": {"model.layers.0.self_attn.q_proj.weight": "whole"}},
        {"model.layers.1.self_attn.q_proj.weight": "whole"},
    ),
    "selections.explicit.allow_partial": (
        {"weights": {"model.layers.0.self_attn.q_proj.weight": "whole"}},
        False,
    ),
    "selections.explicit.allow_tied": ({"weights": {"lm_head.weight": "whole"}}, True),
    "selections.largest_gradients.scope": ({}, "model"),
    "selections.largest_gradients.within": ({}, ByRole(roles=("query",))),
    "updates.alternate.phases": (
        {"phases": BY_TURNS},
        (Phase(parts=("up",), steps=2), Phase(parts=("down",), steps=1)),
    ),
    "updates.alternate.until": ({"phases": BY_TURNS, "then": ("up",)}, 3),
    "updates.alternate.then": ({"phases": BY_TURNS, "until": 3, "then": ("up",)}, ("down",)),
    "updates.chain.updates": ({}, (LoraPlus(),)),
    "updates.ratios.roles": ({}, {"value": 2.0}),
    "updates.ratios.patterns": ({}, {"q_proj": 2.0}),
    "updates.ratios.layers": ({}, {0: 2.0}),
    "updates.ratios.spares": ({"default": 2.0}, ("down",)),
    "updates.weight_decay.exempt": ({}, ("value",)),
    "recipes.efficientft.host": ({}, "dora"),
    "recipes.imsm.host": ({}, "dora"),
    "recipes.mixlora.experts": ({}, 4),
    "blocks.routed_experts.experts": ({}, 4),
    "blocks.routed_experts.threshold": ({"routing": "top_p"}, 0.3),
    "blocks.routed_experts.renormalise": ({"routing": "top_p"}, False),
    "recipes.efficientft.targets": ({}, "v"),
    "recipes.efficientft.value_learning_rate": ({}, 1e-3),
    "recipes.efficientft.value_learning_rate_ratio": ({}, 2.0),
    "recipes.efficientft.freeze": ({"host": "full", "targets": "host"}, "k"),
    "recipes.efficientft.preset": ({}, "authors"),
    "recipes.sift.roles": ({}, ("query",)),
}


def entries(room: str) -> Iterator[tuple[str, Any]]:
    """Yield the name of every option of a room, and its type."""
    for name, declaration in parts.known(room).items():
        if room == "recipes":
            hints = typing.get_type_hints(declaration.implementation)
            names = list(inspect.signature(declaration.implementation).parameters)
        else:
            hints = typing.get_type_hints(declaration.options)
            names = [entry.name for entry in dataclasses.fields(declaration.options)]
        yield from ((f"{room}.{name}.{entry}", hints[entry]) for entry in names)


OPTIONS = {name: kind for room in ROOMS for name, kind in entries(room)}


def other_than(value: Any, kind: Any) -> Any:
    """Return another value that the option allows, from its type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 1 if value > 1 else value + 1
    if isinstance(value, float):
        return value / 2 or 0.25
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    return pytest.fail(f"{value!r} of type {kind} needs a row in ROWS")


def both(name: str, build: Callable[[str, dict[str, Any]], Any]) -> tuple[Any, Any]:
    """Build a part with an option as it is, and with another value of it."""
    room, part, option = name.split(".")
    shared, other = ROWS.get(name, ({}, None))
    first = build(part, shared)
    if other is None:
        if room == "recipes":
            parameters = inspect.signature(parts.known(room)[part].implementation).parameters
            default = parameters[option].default
        else:
            default = getattr(first, option)
        other = other_than(default, OPTIONS[name])
    return first, build(part, {**shared, option: other})


def of_room(room: str) -> list[str]:
    return [name for name in OPTIONS if name.startswith(f"{room}.")]


def what_a_delta_does(options: Any, kind: str) -> list[torch.Tensor]:
    """Start values, and outputs and gradients while training, on the same noise."""
    base = tiny("llama", "causal_lm")
    places = sites.of(base)
    injection = Injection(
        sites=places,
        selection=selection_for(kind, base, places),
        calibration=calibration_for(base),
    )
    model = carrier_of(options).prepare(base, injection)
    start = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    torch.manual_seed(0)
    output = shaken(model).train()(input_ids=token_ids()).logits
    trained = [p for p in model.parameters() if p.requires_grad]
    return [*start, output.detach(), *torch.autograd.grad(output.square().sum(), trained)]


@pytest.mark.parametrize("name", of_room("deltas"))
def test_option_of_a_delta_changes_the_change(name: str) -> None:
    kind = name.split(".")[1]

    def build(part: str, fields: dict[str, Any]) -> Any:
        return dataclasses.replace(options_of(part), **fields)

    one, other = (what_a_delta_does(options, kind) for options in both(name, build))
    assert len(one) != len(other) or not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


# By role, only a model that mixes tokens by other means in some layers is covered in part.
MODELS = {"selections.by_role.allow_partial": lambda: decoder("minimax")}


def tied_llama() -> Any:
    """A model whose output head is the embedding."""
    return tiny("llama", "causal_lm", tie_word_embeddings=True)


def what_is_selected(selection: Any, model: Any) -> str:
    """The weights, or why not."""
    recipe = Recipe(delta=LowRank(rank=1), selection=selection)
    try:
        chosen = applying.select(recipe, model, calibration_for(model))[1]
    except InputError as error:
        return str(error)
    return str(dict(chosen))


@pytest.mark.parametrize("name", of_room("selections"))
def test_option_of_a_selection_changes_what_is_selected(name: str) -> None:
    def build(part: str, fields: dict[str, Any]) -> Any:
        return parts.known("selections")[part].options(**fields)

    model = MODELS.get(name, tied_llama)
    one, other = (what_is_selected(selection, model()) for selection in both(name, build))
    assert one != other


EMBEDDING = TrainedParameter(
    name="base_model.model.model.embed_tokens.lora_embedding_A.default",
    canonical="model.embed_tokens",
    role="embedding",
    part_role="down",
    layer=None,
    number_of_layers=2,
    shape=(2, 64),
)


@pytest.mark.parametrize("name", of_room("updates"))
def test_option_of_an_update_changes_the_groups_or_who_trains(name: str) -> None:
    model, places = lora_llama()
    described = [*trained_parameters(model, places), EMBEDDING]

    def build(part: str, fields: dict[str, Any]) -> Any:
        return parts.known("updates")[part].options(**fields)

    def done(update: Any) -> Any:
        groups = plan_groups(described, update, places, learning_rate=1e-3, weight_decay=0.1)
        return groups, [update.live(step, described, steps=8) for step in range(8)]

    one, other = (done(update) for update in both(name, build))
    assert one != other


@pytest.mark.parametrize("name", of_room("blocks"))
def test_option_of_a_block_changes_output_or_loss_while_training(name: str) -> None:
    def build(part: str, fields: dict[str, Any]) -> Any:
        return parts.known("blocks")[part].options(**fields)

    def done(options: Any) -> list[torch.Tensor]:
        recipe = Recipe(delta=LowRank(rank=1), block=options)
        model: Any = recipe.prepare(tiny("llama", "causal_lm"), task_type="CAUSAL_LM").train()
        torch.manual_seed(0)
        output: torch.Tensor = shaken(model)(input_ids=token_ids()).logits
        return [output, *([model.block.auxiliary(model)] if model.block.adds_to_loss else [])]

    one, other = (done(options) for options in both(name, build))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_no_objective_has_an_option_without_a_test_here() -> None:
    assert not of_room("objectives"), "prove here that the option changes the loss"


@pytest.mark.parametrize("name", of_room("recipes"))
def test_parameter_of_a_recipe_changes_the_recipe(name: str) -> None:
    # A recipe's plain form is all that a run reads; the fields in it have their own tests.
    def build(part: str, arguments: dict[str, Any]) -> Any:
        return named(part, arguments)

    one, other = both(name, build)
    assert one.to_plain() != other.to_plain()


@pytest.mark.parametrize("name", OPTIONS)
def test_misspelt_option_is_refused_with_the_nearest(name: str) -> None:
    room, part, option = name.split(".")
    misspelt = f"{option[:-1]}x" if len(option) > 2 else f"{option}x"
    wanted = rf"'{misspelt}' is not known: choose one of '{option}'"
    with pytest.raises(InputError, match=wanted):
        read(room, part, misspelt)


def read(room: str, part: str, key: str) -> Any:
    if room == "recipes":
        return named(part, {key: 1})
    return parts.from_plain({"kind": part, key: 1}, room)


def test_every_row_is_of_an_option_that_exists() -> None:
    assert ROWS.keys() <= OPTIONS.keys()

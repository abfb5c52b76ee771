"""The shared suite over every declared selection, and each selection's own properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltatune import parts, sites
from deltatune.errors import InputError
from deltatune.part import Columns, Entries, Rows, Whole
from deltatune.seeds import generator_for
from deltatune.selections.by_pattern import ByPattern
from deltatune.selections.by_role import ByRole
from tests.calibrated import measurements_for

DECLARED = sorted(parts.known("selections"))
MODELS = ("llama", "gpt2", "phi3", "bert", "t5")


def options_of(name: str, found: sites.Sites) -> Any:
    options = parts.known("selections")[name].options
    return options.example(found) if hasattr(options, "example") else options()


def choose(selector: Any, model: torch.nn.Module, found: sites.Sites) -> Any:
    return selector(
        model,
        found,
        statistics=measurements_for(selector, model, found),
        generator=generator_for(0, "selection"),
    )


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("name", DECLARED)
def test_selection_names_weights_and_indices_that_exist(tiny, name, architecture) -> None:
    model = tiny(architecture)
    found = sites.of(model)
    selection = choose(options_of(name, found), model, found)
    assert selection
    weights = dict(model.named_parameters())
    for weight, part in selection.items():
        rows, columns = weights[weight].shape
        if found.at_weight(weight)[0].transposed:
            rows, columns = columns, rows
        if not isinstance(part, Whole):
            limit = {Rows: rows, Columns: columns, Entries: rows * columns}[type(part)]
            assert part.indices.dtype == torch.int64
            assert int(part.indices.max()) < limit


@pytest.mark.parametrize("name", DECLARED)
def test_selection_is_the_same_when_made_again(tiny, name) -> None:
    first, second = tiny("gpt2"), tiny("gpt2")
    found = sites.of(first)
    selector = options_of(name, found)
    assert choose(selector, first, found) == choose(selector, second, sites.of(second))


@pytest.mark.parametrize("name", DECLARED)
def test_selection_leaves_the_model_and_global_random_state_alone(tiny, name) -> None:
    model = tiny("gpt2")
    found = sites.of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    choose(options_of(name, found), model, found)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", DECLARED)
def test_selection_survives_a_recipe_file(tiny, name) -> None:
    selector = options_of(name, sites.of(tiny("gpt2")))
    assert parts.from_plain(parts.to_plain(selector, "selections"), "selections") == selector


@pytest.mark.parametrize("name", DECLARED)
def test_selection_declares_what_it_needs_and_its_options_schema(name) -> None:
    options = parts.known("selections")[name].options
    assert isinstance(options.needs, frozenset)
    assert isinstance(options.changes_who_trains, bool)
    kinds = [one["properties"]["kind"]["const"] for one in parts.json_schema("selections")["oneOf"]]
    assert name in kinds


def test_by_role_unites_the_rows_of_a_fused_projection(tiny) -> None:
    model = tiny("phi3")  # 4 query heads and 2 key-value heads of 8: q 0-31, k 32-47, v 48-63
    selection = choose(ByRole(layers=(1,)), model, sites.of(model))
    rows = [*range(32), *range(48, 64)]
    assert list(selection) == ["layers.1.self_attn.qkv_proj.weight"]
    assert selection["layers.1.self_attn.qkv_proj.weight"] == Rows(torch.tensor(rows))


def test_by_role_takes_a_fused_projection_whole_when_all_its_roles_are_asked(tiny) -> None:
    model = tiny("gpt2")
    selection = choose(ByRole(roles=("value", "key", "query")), model, sites.of(model))
    assert selection == {f"h.{layer}.attn.c_attn.weight": Whole() for layer in (0, 1)}


def test_by_role_takes_separate_projections_whole(tiny) -> None:
    model = tiny("llama", "causal_lm")
    selection = choose(ByRole(), model, sites.of(model))
    assert selection == {
        f"model.layers.{layer}.self_attn.{name}_proj.weight": Whole()
        for layer in (0, 1)
        for name in ("q", "v")
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"roles": ("valeu",)}, "role 'valeu' is not known: choose one of 'value'"),
        ({"roles": "query"}, r"give a list, \['query'\]"),
        ({"roles": ()}, "give at least one"),
        ({"roles": ("key", "key")}, "each once"),
        ({"layers": (0, 0)}, "give each layer once"),
        ({"layers": (-1,)}, "from 0"),
    ],
)
def test_by_role_refuses_options_that_cannot_be(fields, message) -> None:
    with pytest.raises(InputError, match=message):
        ByRole(**fields)


def test_by_role_names_the_roles_of_the_model_when_it_has_none_of_one(tiny) -> None:
    model = tiny("bert")
    with pytest.raises(InputError, match=r"in this bert model role 'gate' is not known: .*'value'"):
        choose(ByRole(roles=("gate",)), model, sites.of(model))


def test_by_role_names_the_number_of_layers_when_there_is_no_such_layer(tiny) -> None:
    model = tiny("bert")
    with pytest.raises(InputError, match="this model has 2 layers, counted from 0; leave 2 out"):
        choose(ByRole(layers=(1, 2)), model, sites.of(model))


def test_by_pattern_equals_by_role_when_it_names_the_same_modules(tiny) -> None:
    model = tiny("bert", "sequence_classification")
    found = sites.of(model)
    by_pattern = ByPattern(patterns=("attention.self.query", "attention.*.value"))
    assert choose(by_pattern, model, found) == choose(ByRole(), model, found)


def test_by_pattern_compares_whole_components_only(tiny) -> None:
    model = tiny("t5")
    found = sites.of(model)
    names = choose(ByPattern(patterns=("o",)), model, found)
    assert len(names) == 6
    assert all(
        name.endswith(("SelfAttention.o.weight", "EncDecAttention.o.weight")) for name in names
    )


def test_by_pattern_takes_the_rows_of_a_role_of_a_fused_projection(tiny) -> None:
    model = tiny("gpt2")
    found = sites.of(model)
    selection = choose(ByPattern(patterns=("attn.c_attn:value",)), model, found)
    assert selection == choose(ByRole(roles=("value",)), model, found)


def test_by_pattern_double_star_spans_any_number_of_components(tiny) -> None:
    model = tiny("t5")
    selection = choose(ByPattern(patterns=("decoder.**.q",)), model, sites.of(model))
    assert len(selection) == 4
    assert all(name.startswith("decoder.") for name in selection)


def test_by_pattern_names_the_nearest_when_nothing_matches(tiny) -> None:
    model = tiny("llama")
    with pytest.raises(
        InputError, match=r"'self_attn.q_prj' matches no module: .*'self_attn.q_proj'"
    ):
        choose(ByPattern(patterns=("self_attn.q_prj",)), model, sites.of(model))


@pytest.mark.parametrize("patterns", [(), ("q", "")])
def test_by_pattern_refuses_empty_patterns(patterns) -> None:
    with pytest.raises(InputError, match="give at least one, none empty"):
        ByPattern(patterns=patterns)
    with pytest.raises(InputError, match=r"give a list, \['q'\]"):
        ByPattern(patterns="q")

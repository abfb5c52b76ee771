"""Recipes are read, named apart, and set to the same conditions."""

from __future__ import annotations

import pytest

from deltatune.comparison.contestants import contestants
from deltatune.errors import InputError
from deltatune.recipe import named


def test_contestants_are_read_with_names_options_and_files(tmp_path):
    (tmp_path / "mine.yaml").write_text(named("lora", {"delta.rank": 3}).to_yaml())
    found = contestants(f"full,small=lora:delta.rank=2,mine={tmp_path / 'mine.yaml'}", {})
    assert [one.name for one in found] == ["full", "small", "mine"]
    assert [getattr(one.recipe.delta, "rank", None) for one in found] == [None, 2, 3]
    (one,) = contestants("efficientft:host=dora:value_learning_rate_ratio=8", {})
    assert one.name == "efficientft:host=dora:value_learning_rate_ratio=8"
    assert one.recipe.delta.use_dora


def test_contestants_may_be_recipes_in_a_mapping_or_a_list():
    recipe = named("lora")
    assert contestants({"a": recipe, "b": "full"}, {})[0].recipe.delta == recipe.delta
    assert [one.name for one in contestants([recipe, "full"], {})] == [recipe.name, "full"]


def test_contestants_share_what_decides_how_much_a_run_sees():
    given = {"plain": "lora", "own": named("lora", {"training.batch_size": 4})}
    shared = {"training.batch_size": 8, "training.precision": "bfloat16"}
    found = contestants(given, shared)
    assert {one.recipe.training.batch_size for one in found} == {8}
    assert {one.recipe.training.precision for one in found} == {"bfloat16"}
    assert found[0].notes == ()
    assert found[1].notes == ("training.batch_size=4 of its own is 8 here, as for all",)
    warm = named("lora", {"training.warmup": 0.3})
    assert contestants({"warm": warm}, shared)[0].recipe.training.warmup == 0.3


def test_contestant_takes_parameters_of_its_recipe_for_one_run():
    (one,) = contestants("efficientft:host=dora", {"training.batch_size": 2})
    made = one.at({"value_learning_rate": 0.02, "value_learning_rate_ratio": 8, "training.seed": 5})
    assert made.optimizer.learning_rate == pytest.approx(0.0025)
    assert made.delta.use_dora
    assert (made.training.seed, made.training.batch_size) == (5, 2)
    scaled = one.at({"optimizer.learning_rate": 0.5})
    assert scaled.optimizer.learning_rate == 0.5
    assert scaled.update == one.recipe.update


@pytest.mark.parametrize(
    ("trials", "factors"), [(1, [0]), (2, [0, 1]), (3, [-1, 0, 1]), (4, [-1, 0, 1, 2])]
)
def test_rates_are_a_grid_of_half_decades_about_the_recipes_own(trials, factors):
    (one,) = contestants("lora:optimizer.learning_rate=0.001", {})
    wanted = [1e-3 * 10 ** (factor / 2) for factor in factors]
    assert one.rates(trials) == pytest.approx(wanted, rel=1e-3)
    assert one.learning_rate in one.rates(trials)


@pytest.mark.parametrize(
    ("given", "shared", "message"),
    [
        ("", {}, "no recipe is given"),
        ("lorra", {}, "recipe 'lorra' is not known: choose one of 'lora'"),
        ("lora,lora", {}, "'lora' and 'lora' would have one name in files"),
        ("a b=lora,a:b=lora", {}, "recipe 'a:b=lora'"),
        ("lora:rank", {}, "'rank' has no '='"),
        ("lora:delta.rnak=2", {}, "'delta.rnak' is not known|key 'rnak' is not known"),
        ("lora:delta.targets=[q,v]", {}, r"'delta.targets=\[q' is not readable: commas and colons"),
        ("=lora", {}, "recipe name '' is not allowed"),
        ({" ": "lora"}, {}, "recipe name ' ' is not allowed"),
        ({"Ä" * 80: "lora"}, {}, "1 to 150 letters"),
        ("mine=lora,Mine=full", {}, "'mine' and 'Mine' would have one name in files"),
        ("none.yaml", {}, "recipe file 'none.yaml' does not exist"),
        ("lora", {"delta.rank": 2}, "cannot be set for all recipes: allowed are training"),
        ("lora", {"training.steps": 2}, "'training.steps' cannot be set for all"),
        ("lora", {"training.batch_size": 0}, "batch_size=0"),
    ],
)
def test_contestants_refuse_what_they_cannot_read(given, shared, message):
    with pytest.raises(InputError, match=message):
        contestants(given, shared)

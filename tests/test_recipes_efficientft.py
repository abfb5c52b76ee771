"""EfficientFT as a wrapper: hosts, targets, ratios in every form, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml

from deltatune import parts
from deltatune.deltas.low_rank import LowRank
from deltatune.errors import InputError, NotComposable
from deltatune.recipe import Optimizer, Recipe, Training, from_plain, named
from deltatune.recipes.efficientft import PRESETS, efficientft
from deltatune.selections.by_pattern import ByPattern
from deltatune.selections.by_role import ByRole
from deltatune.updates.chain import Chain
from deltatune.updates.layerwise_decay import LayerwiseDecay
from deltatune.updates.lora_plus import LoraPlus
from deltatune.updates.ratios import Ratios
from deltatune.updates.weight_decay import WeightDecay
from tests.models import tiny
from tests.planned import groups_of, rates_of
from tests.recipe_runs import SMALL
from tests.training import PEFT_ASKS_OLD_NAME, collate, token_rows

pytestmark = PEFT_ASKS_OLD_NAME
HOSTS = [name for name in parts.known("recipes") if not name.startswith("efficientft")]
# Virtual tokens have no query: key and value are trained, and the value alone is faster.
TARGETS = {"prefix_tuning": "kv"}
BY_DEPTH = {"shape": "geometric", "first": 2.0, "last": 8.0}


def on_llama(**options: Any) -> dict[str, float]:
    """The rates of a tiny Llama of two layers; the value's is 0.8."""
    return rates_of(efficientft(value_learning_rate=0.8, **options), tiny("llama", "causal_lm"))


@pytest.mark.parametrize("host", HOSTS)
def test_every_recipe_of_the_catalogue_is_a_host(host: str) -> None:
    own = named(host)
    recipe = named("efficientft", {"host": host, "value_learning_rate_ratio": 4})
    assert type(recipe.delta) is type(own.delta)
    assert recipe.training == own.training
    assert recipe.optimizer.learning_rate == own.optimizer.learning_rate / 2
    assert recipe.update.updates[0] == Ratios(roles={"value": 4.0})
    assert from_plain(yaml.safe_load(recipe.to_yaml())).to_plain() == recipe.to_plain()


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_trains_its_targets_alone_and_the_value_faster(host: str) -> None:
    targets = TARGETS.get(host, "qv")
    small = {"name": host, **SMALL.get(host, {})}
    given = {"host": small, "targets": targets, "value_learning_rate_ratio": 4}
    of_labels = rates_of(
        named("efficientft", {**given, "objective": "next_token"}),
        tiny("llama", "causal_lm"),
        dataloader=[collate(token_rows(4))],  # for those that measure the model first
        task_type="CAUSAL_LM",
    )
    # Locations are no weights, and a block is no place of the base: the ratio spares them.
    weights = {k: rate for k, rate in of_labels.items() if not k.endswith(" location")}
    rates = {k.split()[0]: rate for k, rate in weights.items() if not k.startswith("other")}
    assert set(rates) == {"value", "query" if "q" in targets else "key"}
    assert rates.pop("value") == pytest.approx(4 * rates.popitem()[1], rel=1e-12)


def test_ratio_one_is_the_host_with_its_own_rate() -> None:
    host = Recipe(delta=LowRank(rank=2), optimizer=Optimizer(learning_rate=3e-4))
    recipe = efficientft(host, value_learning_rate_ratio=1)
    assert recipe.optimizer == host.optimizer
    base = tiny("llama", "causal_lm")
    assert rates_of(recipe, base) == rates_of(host, base) == {"query": 3e-4, "value": 3e-4}


def test_preset_turns_the_rates_about_those_of_the_host() -> None:
    recipe = efficientft(Recipe(delta=LowRank(), optimizer=Optimizer(learning_rate=1e-3)))
    assert recipe.optimizer.learning_rate == 5e-4
    assert recipe.update == Chain(updates=(Ratios(roles={"value": 4.0}), WeightDecay()))
    in_place = named("efficientft", {"host": "full"})
    assert in_place.update.updates[0] == Ratios(roles={"value": 2.0})
    assert in_place.optimizer.learning_rate == 5e-5 / math.sqrt(2)


def test_full_is_efficientft_on_full_tuning() -> None:
    assert named("efficientft_full") == efficientft(
        "full", value_learning_rate=2e-4, value_learning_rate_ratio=2.0
    )
    assert named("efficientft_full").name == "efficientft_full"


@pytest.mark.parametrize(
    ("targets", "roles"),
    [
        ("qkv", ("query", "key", "value")),
        ("kv", ("key", "value")),
        ("v", ("value",)),
        ("qvo", ("query", "value", "output")),
        (("q", "value", "down"), ("query", "value", "down")),
    ],
)
def test_targets_are_any_set_of_roles(targets: Any, roles: tuple[str, ...]) -> None:
    rates = on_llama(targets=targets, value_learning_rate_ratio=4)
    assert rates == {role: 0.8 if role == "value" else 0.2 for role in roles}


@pytest.mark.parametrize("targets", ["q", "qk"])
def test_targets_without_the_value_have_no_ratio(targets: str) -> None:
    recipe = efficientft(targets=targets)
    assert recipe.optimizer == named("lora").optimizer
    assert set(rates_of(recipe, tiny("llama", "causal_lm")).values()) == {1e-3}
    with pytest.raises(InputError, match=r"ratio=4 is for the value, and the targets are query"):
        efficientft(targets=targets, value_learning_rate_ratio=4)


def test_host_s_own_places_without_the_frozen_ones() -> None:
    given = {"host": "full", "targets": "host", "freeze": "k", "value_learning_rate": 8.0}
    rates = rates_of(named("efficientft", given), tiny("llama", "causal_lm"))
    slow = ("query", "output", "gate", "up", "down")
    assert rates == {"value": 8.0, **{role: 4.0 for role in slow}}


def test_ratio_per_role_gives_other_roles_their_own() -> None:
    rates = on_llama(targets="qvo", value_learning_rate_ratio={"value": 4, "output": 2})
    assert rates == {"query": 0.2, "value": 0.8, "output": 0.4}


def test_ratio_per_pattern_multiplies_with_that_of_the_role() -> None:
    rates = on_llama(value_learning_rate_ratio={"value": 4, "layers.0.self_attn.v_proj": 0.5})
    assert rates == {"query": 0.2, "value layers.0.self_attn.v_proj": 0.4, "value": 0.8}


def test_ratio_per_layer_states_the_rate_of_the_largest() -> None:
    rates = on_llama(value_learning_rate_ratio={0: 2, 1: 8})
    assert rates == {"query": 0.1, "value layer 0": 0.2, "value layer 1": 0.8}


def test_ratio_as_a_function_of_depth() -> None:
    rates = on_llama(value_learning_rate_ratio=BY_DEPTH)
    assert rates == pytest.approx({"query": 0.1, "value layer 0": 0.2, "value layer 1": 0.8})


def test_lora_plus_multiplies_with_the_ratio() -> None:
    host = Recipe(delta=LowRank(rank=2), update=LoraPlus(ratio=16))
    recipe = efficientft(host, value_learning_rate=4e-4, value_learning_rate_ratio=4)
    eta, rho, ratio = 1e-4, 16, 4
    # The card: eta, rho eta, lambda eta, lambda rho eta.
    assert rates_of(recipe, tiny("llama", "causal_lm")) == pytest.approx(
        {
            "query": eta,
            "query up": rho * eta,
            "value": ratio * eta,
            "value up": ratio * rho * eta,
        },
        rel=1e-12,
    )


def test_layerwise_decay_multiplies_with_the_ratio_and_does_not_replace_it() -> None:
    host = Recipe(delta=LowRank(rank=2), update=LayerwiseDecay(decay=0.5))
    recipe = efficientft(host, value_learning_rate=0.8, value_learning_rate_ratio=4)
    assert rates_of(recipe, tiny("llama", "causal_lm")) == {
        "query layer 0": 0.1,
        "query layer 1": 0.2,
        "value layer 0": 0.4,
        "value layer 1": 0.8,
    }


def test_chain_of_the_host_stays_whole() -> None:
    host = Recipe(
        delta=LowRank(), update=Chain(updates=(LoraPlus(), Chain(updates=(LayerwiseDecay(),))))
    )
    kinds = [type(rule).__name__ for rule in efficientft(host).update.updates]
    assert kinds == ["Ratios", "LoraPlus", "LayerwiseDecay", "WeightDecay"]


def test_biases_do_not_decay_and_weights_do() -> None:
    recipe = named("efficientft", {"host": "full", "optimizer.weight_decay": 0.1})
    groups = groups_of(recipe, tiny("llama", "causal_lm", attention_bias=True))
    # Two layers of width 32, the value 16 wide.
    assert [(g.label, g.number_of_parameters, g.weight_decay) for g in groups] == [
        ("query", 2 * 32 * 32, 0.1),
        ("query", 2 * 32, 0.0),
        ("value", 2 * 16 * 32, 0.1),
        ("value", 2 * 16, 0.0),
    ]


def test_host_keeps_everything_else() -> None:
    host = Recipe(
        name="mine",
        delta=peft.LoraConfig(r=4),
        selection=ByRole(roles=("query", "key"), layers=(1,), allow_absent=True),
        optimizer=Optimizer(name="sgd", weight_decay=0.1),
        training=Training(steps=7),
        roles={"q_proj": "query"},
    )
    recipe = efficientft(host)
    assert recipe.name == "efficientft_mine"
    assert recipe.delta is host.delta
    assert recipe.selection == ByRole(roles=("query", "value"), layers=(1,))
    assert (recipe.optimizer.name, recipe.optimizer.weight_decay) == ("sgd", 0.1)
    assert (recipe.training, recipe.roles) == (host.training, host.roles)


def test_host_is_named_with_its_parameters() -> None:
    given = {"host": {"name": "lora", "rank": 3, "training.epochs": 9}, "delta.alpha": 5}
    recipe = named("efficientft", given)
    assert recipe.delta == LowRank(rank=3, alpha=5.0)
    assert recipe.training.epochs == 9


def test_host_with_another_selection_keeps_it_or_is_refused() -> None:
    host = Recipe(delta=LowRank(), selection=ByPattern(patterns=("v_proj", "down_proj")))
    with pytest.raises(NotComposable, match=r"ByPattern of the host 'custom' .* targets=host"):
        efficientft(host)
    rates = rates_of(
        efficientft(host, targets="host", value_learning_rate=4.0), tiny("llama", "causal_lm")
    )
    assert rates == {"value": 4.0, "down": 1.0}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"host": "lorra"}, "recipe 'lorra' is not known: choose one of 'lora'"),
        ({"host": "efficientft"}, "already gives the value a rate of its own"),
        ({"host": 3}, "host=3 is not allowed: give a recipe, its name"),
        ({"targets": "qx"}, "targets 'x' is not known"),
        ({"targets": "qkv", "freeze": "k"}, "name the same"),
        ({"preset": "cleen"}, "preset 'cleen' is not known: choose one of 'clean'"),
        ({"value_learning_rate": -1}, "value_learning_rate=-1.0 is not allowed"),
        ({"value_learning_rate": "fast"}, "value_learning_rate=fast is not allowed"),
        ({"value_learning_rate_ratio": "x"}, "value_learning_rate_ratio: ratio='x'"),
        (
            {"value_learning_rate_ratio": {"output": 2}},
            "is for the output, and the targets are query, value",
        ),
    ],
)
def test_efficientft_names_the_mistake(given: dict[str, Any], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        named("efficientft", given)


def test_target_that_the_model_lacks_is_refused_even_where_the_host_passes_it_over() -> None:
    with pytest.raises(InputError, match="role 'gate' is not known"):
        named("efficientft", {"host": "full", "targets": ["v", "gate"]}).check(tiny("roberta"))


def test_pattern_that_reaches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"pattern 'attention\.value' reaches no trained"):
        on_llama(value_learning_rate_ratio={"value": 4, "attention.value": 2})


def test_presets_are_the_two_of_the_card() -> None:
    assert set(PRESETS) == {"clean", "authors"}


def test_command_line_trains_on_a_named_host(
    command: Any, llama: Path, pairs: Path, tmp_path: Path
) -> None:
    fields = {
        "host": "dora",
        "targets": "qkv",
        "value_learning_rate_ratio": "{shape: linear, first: 2, last: 8}",
        "training.steps": 2,
        "training.warmup": 0,
        "delta.r": 2,
    }
    given = [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]
    run = tmp_path / "run"
    code, _, err = command(
        "train",
        "--model",
        llama,
        "--data",
        pairs,
        "--recipe",
        "efficientft",
        "--output",
        run,
        *given,
    )
    assert code == 0, err
    rates = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["learning_rates"]
    eta = rates["query"]
    wanted = {"query": eta, "key": eta, "value layer 0": 2 * eta, "value layer 1": 8 * eta}
    assert eta > 0
    assert rates == pytest.approx(wanted)

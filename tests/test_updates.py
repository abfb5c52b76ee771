"""The suite that every declared update passes, and groups as such."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import TrainerCallback

from deltatune import parts
from deltatune import sites as places
from deltatune.bridges.names import trained_parameters
from deltatune.errors import InputError
from deltatune.updates.groups import plan_groups, table
from deltatune.updates.ratios import Ratios
from deltatune.updates.update import Factor
from tests.models import tiny
from tests.training import PEFT_ASKS_OLD_NAME, lora_llama, token_rows, trainer_of

pytestmark = PEFT_ASKS_OLD_NAME
UPDATES = parts.known("updates")
ROWS = token_rows(8)
STEPS = 4


class WatchRates(TrainerCallback):
    """Notes every group's learning rate in each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append([group["lr"] for group in kwargs["optimizer"].param_groups])


@pytest.fixture(params=list(UPDATES))
def update(request: pytest.FixtureRequest) -> Any:
    return UPDATES[request.param].options.example()


def planned(update: Any, **options: Any) -> Any:
    model, sites = lora_llama()
    parameters = trained_parameters(model, sites)
    options = {"learning_rate": 1e-3, "weight_decay": 0.1, **options}
    return parameters, plan_groups(parameters, update, sites, **options)


def test_update_puts_every_trained_parameter_into_exactly_one_group(update: Any) -> None:
    parameters, groups = planned(update)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(parameter.name for parameter in parameters)
    assert len(set(names)) == len(names)
    total = sum(math.prod(parameter.shape) for parameter in parameters)
    assert sum(group.number_of_parameters for group in groups) == total


def test_update_gives_the_same_groups_every_time(update: Any) -> None:
    assert planned(update)[1] == planned(update)[1]


def test_update_factors_name_only_what_trains(update: Any) -> None:
    model, sites = lora_llama()
    parameters = trained_parameters(model, sites)
    factors = update.factors(parameters, sites)
    assert set(factors) <= {parameter.name for parameter in parameters}
    assert all(f.learning_rate > 0 and f.weight_decay >= 0 for f in factors.values())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_update_ratios_survive_the_schedule_at_every_step(
    update: Any, schedule: str, tmp_path: Path
) -> None:
    model, sites = lora_llama()
    watch = WatchRates()
    trainer = trainer_of(
        model,
        sites,
        tmp_path,
        rows=ROWS,
        update=update,
        callbacks=[watch],
        lr_scheduler_type=schedule,
        warmup_steps=2,
    )
    trainer.train()
    assert len(watch.rates) == STEPS
    groups = plan_groups(
        trained_parameters(model, sites), update, sites, learning_rate=1e-2, weight_decay=0.0
    )
    expected = [group.learning_rate / groups[0].learning_rate for group in groups]
    assert watch.rates[0] == [0.0] * len(groups)  # the warm-up starts from 0
    for rates in watch.rates[1:]:
        # One product and one quotient of doubles each: a few units in the last place.
        assert [rate / rates[0] for rate in rates] == pytest.approx(expected, rel=1e-12)


def test_update_leaves_everything_else_bit_identical(update: Any, tmp_path: Path) -> None:
    model, sites = lora_llama()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer_of(model, sites, tmp_path, rows=ROWS, update=update, weight_decay=0.1).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


def test_update_has_a_plain_form(update: Any) -> None:
    plain = parts.to_plain(update, "updates")
    assert parts.from_plain(plain, "updates") == update


def test_groups_are_one_for_each_role_rate_and_decay() -> None:
    _, groups = planned(Ratios(roles={"value": 4.0}))
    assert [(g.label, g.learning_rate, g.weight_decay, len(g.names)) for g in groups] == [
        ("query", 1e-3, 0.1, 4),
        ("value", 4e-3, 0.1, 4),
    ]


def test_groups_are_shown_with_tensors_parameters_rate_and_decay() -> None:
    _, groups = planned(Ratios(roles={"value": 4.0}))
    console = Console(file=io.StringIO(), width=80)
    console.print(table(groups))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    # rank 2: query 2 * 2 * (32 + 32) = 256; value, with half as many heads, 2 * 2 * (32 + 16) = 192
    for row in (["query", "4", "256", "0.001", "0.1"], ["value", "4", "192", "0.004", "0.1"]):
        assert any(all(cell in line.split() for cell in row) for line in text.splitlines())
    assert "448" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate=0 is not allowed"),
        ({"learning_rate": math.nan}, r"learning_rate=nan is not allowed"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1 is not allowed"),
    ],
)
def test_groups_refuse_impossible_numbers(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(Ratios(), **options)


def test_groups_refuse_a_model_in_which_nothing_trains() -> None:
    sites = places.of(tiny("llama"))
    with pytest.raises(InputError, match=r"nothing trains"):
        plan_groups([], Ratios(), sites, learning_rate=1e-3, weight_decay=0.0)


def test_factor_is_one_for_what_a_rule_does_not_name() -> None:
    assert Factor() == Factor(learning_rate=1.0, weight_decay=1.0, label="")

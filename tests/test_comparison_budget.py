"""A budget is divided evenly and never silently too small."""

from __future__ import annotations

import pytest

from deltatune.comparison.budget import Budget, StepCosts
from deltatune.comparison.terms import Terms
from deltatune.errors import InputError

COSTS = StepCosts(tokens=1000.0, seconds=3.0, flops=2e9)


@pytest.mark.parametrize(
    ("text", "runs", "steps"),
    [
        ("tokens=60000", 6, 10),
        ("tokens=65999", 6, 10),
        ("minutes=3", 6, 10),
        ("flops=1.2e11", 6, 10),
        ("tokens=1000", 1, 1),
    ],
)
def test_budget_gives_every_run_an_even_share_in_whole_steps(text, runs, steps):
    assert Budget.read(text).steps(COSTS, runs=runs, recipe="lora") == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens=0", "give a finite number above 0"),
        ("tokens=-1", "give a finite number above 0"),
        ("tokens=nan", "give a finite number above 0"),
        ("minutes=inf", "give a finite number above 0"),
        ("tokens=many", "write KIND=AMOUNT"),
        ("2e6", "write KIND=AMOUNT"),
        (2e6, "budget 2000000.0 cannot be read: write KIND=AMOUNT"),
        ("token=5", "budget 'token' is not known: choose one of 'tokens'"),
    ],
)
def test_budget_refuses_what_is_none(text, message):
    with pytest.raises(InputError, match=message):
        Budget.read(text)


def test_budget_below_one_step_says_how_much_is_needed():
    with pytest.raises(InputError, match=r"the 6 runs of 'lora'.*at least tokens=6000"):
        Budget.read("tokens=5999").steps(COSTS, runs=6, recipe="lora")


def test_terms_count_the_runs_that_share_a_budget():
    budget = Budget.read("tokens=1")
    assert Terms(budget=budget, seeds=(0, 1, 2), trials=3).runs == 6
    assert Terms(budget=budget, seeds=(0, 1, 2), trials=1).runs == 3
    sweep = {"rank": [1, 2], "rate": [1, 2, 3]}
    assert Terms(budget=budget, seeds=(0, 1), trials=3, sweep=sweep).runs == 12


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"seeds": ()}, "at least one, different numbers"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"seeds": (-1,)}, "from 0 up"),
        ({"trials": 0}, "trials=0 is not allowed"),
        ({"sweep": {"rank": []}}, "sweep of 'rank' has no values"),
        ({"sweep": {"training.steps": [1]}}, "'training.steps' cannot be swept: the budget"),
        ({"sweep": {"a": [1], "b": [1], "c": [1]}}, "3 fields are swept"),
    ],
)
def test_terms_refuse_what_cannot_be_run(terms, message):
    with pytest.raises(InputError, match=message):
        Terms(**{"budget": Budget.read("tokens=1"), "seeds": (0,), "trials": 3, **terms})

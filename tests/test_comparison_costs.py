"""Costs: counted against predicted, and nothing left changed by counting."""

import pytest
import torch

from deltatune import sites
from deltatune.comparison.costs import CostMeter, count_flops, optimizer_bytes, predicted_costs
from deltatune.comparison.environment import environment
from deltatune.recipe import InPlace, Recipe, named
from deltatune.selections.by_role import ByRole
from tests.models import tiny

PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")
UPPER = {"selection": {"kind": "by_role", "roles": ["query", "value"], "layers": [1]}}
RECIPES = {
    "full": Recipe(delta=InPlace(), selection=ByRole(roles=PROJECTIONS)),
    "low rank on query and value": named("efficientft"),
    "low rank above a frozen half": named("efficientft", UPPER),
}


def _loss(model, inputs):
    return model(**inputs).logits.float().square().mean()


@pytest.mark.parametrize("name", RECIPES)
def test_predicted_flops_are_near_the_counted_ones(name):
    base = tiny("llama", "causal_lm", attention="eager", hidden_size=64, intermediate_size=128)
    places = sites.of(base)
    model = RECIPES[name].prepare(base)
    ids = torch.randint(3, 60, (4, 16))
    counted = count_flops(model, {"input_ids": ids}, _loss)
    predicted = predicted_costs(
        model, places, sequences=4, sequence_length=16, optimizer="adamw_torch"
    )
    # what the formula leaves out: rotary tables, and gradients that one side of a product skips
    assert predicted["micro_batch_flops"] == pytest.approx(counted, rel=0.05)


def test_counting_leaves_weights_gradients_mode_and_random_state_alone():
    model = named("efficientft").prepare(tiny("llama", "causal_lm")).eval()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    count_flops(
        model, {"input_ids": torch.randint(3, 60, (2, 8), generator=torch.Generator())}, _loss
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert all(p.grad is None and torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_optimizer_bytes_are_two_moments_and_a_step_per_tensor():
    weight = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    assert optimizer_bytes(optimizer) == 2 * 15 * 4 + 4


def test_meter_sums_steps_and_tokens_and_sees_memory_rise():
    meter = CostMeter(torch.device("cpu"))
    with meter:
        for _ in range(2):
            meter.step_started()
            held = torch.ones(20_000_000)
            meter.step_finished(30, padded_tokens=40)
    figures = meter.to_dict()
    assert (figures["tokens"], figures["padded_tokens"], figures["optimizer_steps"]) == (60, 80, 2)
    assert figures["tokens_per_second"] == pytest.approx(60 / figures["wall_seconds"])
    assert figures["peak_memory_above_base_bytes"] >= 0.9 * held.nbytes


def test_environment_names_versions_and_no_folder_of_the_machine():
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert not any("/" in part for part in found["command"].split()[:1])

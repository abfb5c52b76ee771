"""What the plan says of memory and time: counted by hand, and nothing left changed by trying."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from deltatune import planning
from deltatune.comparison.memory_prediction import (
    activation_bytes,
    kept_bytes,
    predicted_memory_bytes,
    training_bytes,
)
from deltatune.comparison.micro_batch import first_rows, heaviest_rows, tried
from deltatune.comparison.time_prediction import measured_micro_batch_seconds
from deltatune.errors import InputError
from deltatune.plan import Plan
from deltatune.recipe import named
from deltatune.request import Request
from tests.folders import classifications, completions
from tests.pictures import image_model_folder, pictures

FIELDS: dict[str, Any] = {"training.batch_size": 3}


def planned(model: Path, recipe: str, data: Any = None, **changes: Any) -> Plan:
    fields = {**FIELDS, **{name.replace("__", "."): value for name, value in changes.items()}}
    request = Request(model=model, data=data or completions(24), metric="" if data else "loss")
    return planning.plan(request, named(recipe, fields), Console(file=io.StringIO()))


# Of each of 2 layers: query and value of 32 and 16 rows with factors of rank 2, or all three whole.
ADAPTER = 2 * (2 * (32 + 32) + 2 * (16 + 32))
WHOLE = 2 * (32 + 16 + 16) * 32


@pytest.mark.parametrize(
    ("recipe", "changes", "expected"),
    [
        # float32 values, gradients and Adam's two moments
        ("efficientft", {"delta__rank": 2}, 16 * ADAPTER),
        # the base's own values are there already
        ("efficientft_full", {"selection__roles": ["query", "key", "value"]}, 12 * WHOLE),
        (
            "efficientft_full",
            {"selection__roles": ["query", "key", "value"], "optimizer__name": "sgd"},
            4 * WHOLE,
        ),
        ("efficientft", {"optimizer__name": "adafactor"}, None),
    ],
)
def test_what_stays_through_training_is_a_hand_count(
    llama: Path, recipe: str, changes: dict[str, Any], expected: int | None
) -> None:
    plan = planned(llama, recipe, **changes)
    assert training_bytes(plan) == expected
    total = predicted_memory_bytes(plan)
    assert total == (None if expected is None else expected + activation_bytes(plan))


def test_kept_bytes_are_those_of_different_storages_alive_at_once() -> None:
    model = nn.Linear(100, 1, bias=False)
    inputs = torch.ones(100)

    def chain() -> torch.Tensor:
        # the product keeps the inputs (400 bytes) and the weight, which is no activation;
        # the exponential keeps its result (400); its two halves are views of that very storage
        grown = (model.weight[0] * inputs).exp()
        return (grown[:50] * grown[50:]).sum()

    assert kept_bytes(model, chain) == 800

    def one_after_the_other() -> torch.Tensor:
        for _ in range(3):
            chain().backward()  # what a pass kept is gone before the next
        return chain()

    assert kept_bytes(model, one_after_the_other) == 800


def test_packed_batches_keep_less_than_padded_ones(llama: Path) -> None:
    rows = [{"prompt": "a", "completion": " the mat" * (1 + 9 * (i % 3 == 0))} for i in range(24)]
    changes = {"training__groups_by_length": False}
    padded, packed = (
        activation_bytes(planned(llama, "lora", rows, training__packing=packing, **changes))
        for packing in ("off", "on")
    )
    assert packed < padded


def test_bytes_kept_do_not_depend_on_accumulation(llama: Path) -> None:
    one, four = (
        predicted_memory_bytes(planned(llama, "lora", training__accumulation=steps))
        for steps in (1, 4)
    )
    assert one == four


def test_heaviest_micro_batch_holds_the_longest_example(llama: Path) -> None:
    plan = planned(llama, "lora")
    lengths = plan.collate.lengths(plan.encoded.splits["train"])
    assert max(lengths[row] for row in heaviest_rows(plan)) == max(lengths)
    assert len(heaviest_rows(plan)) == 3
    assert first_rows(plan) == [0, 1, 2]


def test_tried_loss_is_the_mean_over_supervised_terms(llama: Path) -> None:
    plan = planned(llama, "lora", delta__dropout=0.0)
    rows = first_rows(plan)
    batch = plan.collate([plan.encoded.splits["train"][row] for row in rows])
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        total = plan.objective.total(plan.model(**inputs), batch)
    mean = float(total / plan.objective.count(batch))
    with tried(plan, rows) as loss:
        # packed rows and a head of supervised rows sum in another order
        assert loss().item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("recipe", ["lora", "prefix_tuning"])
def test_trying_leaves_everything_as_it_was(llama: Path, recipe: str) -> None:
    plan = planned(llama, recipe)
    plan.model.eval()
    trained = [one for one in plan.model.parameters() if one.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    weights = {name: tensor.clone() for name, tensor in plan.model.state_dict().items()}
    attention = plan.base.model.config._attn_implementation
    random_state = torch.random.get_rng_state()
    assert measured_micro_batch_seconds(plan) > 0
    assert activation_bytes(plan) > 0
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert plan.base.model.config._attn_implementation == attention
    assert not any(module.training for module in plan.model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in plan.model.state_dict().items())
    assert all(one.grad is not None and bool((one.grad == 1).all()) for one in trained)
    assert all(one.grad is None for one in plan.model.parameters() if not one.requires_grad)


@pytest.mark.parametrize("reads", ["text", "images"])
def test_classifiers_are_predicted_too(llama: Path, tmp_path: Path, reads: str) -> None:
    model = llama if reads == "text" else image_model_folder(tmp_path / "vit")
    plan = planned(model, "lora", classifications() if reads == "text" else pictures())
    staying = training_bytes(plan)
    assert staying == 16 * plan.trainable_parameters
    assert activation_bytes(plan) > 0
    assert measured_micro_batch_seconds(plan, repeats=1) > 0


def test_number_of_repeats_is_checked(llama: Path) -> None:
    with pytest.raises(InputError, match="repeats=0 is not allowed: give an integer from 1"):
        measured_micro_batch_seconds(planned(llama, "lora"), repeats=0)

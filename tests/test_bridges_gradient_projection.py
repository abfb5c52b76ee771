"""GaLore: the right step, the right weights, rates that hold, and states that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from deltatune import sites as places
from deltatune.bridges.checkpoints import with_exact_checkpoints
from deltatune.bridges.gradient_projection import with_plain_state
from deltatune.bridges.in_place import prepare_in_place
from deltatune.bridges.trainer import with_objective
from deltatune.comparison.cost_prediction import predicted_costs
from deltatune.comparison.costs import optimizer_bytes
from deltatune.errors import InputError, NotComposable
from deltatune.objectives.sequence_classification import SequenceClassification
from deltatune.recipe import named
from deltatune.run import finetune
from deltatune.selections.by_role import ByRole
from deltatune.updates.ratios import Ratios
from tests.models import tiny
from tests.training import token_rows, trainer_of

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
ROWS = token_rows(6)
EXACT: Any = with_objective(with_exact_checkpoints(Trainer))
OPTIONS = {"rank": 2, "update_proj_gap": 2, "scale": 4.0}


def galore_trainer(folder: Path, name: str = "llama", **changes: Any) -> tuple[Any, Any, Any]:
    base = tiny(name, "causal_lm")
    found = places.of(base)
    model = prepare_in_place(base, found, ByRole()(base, found))
    trainer = trainer_of(
        model,
        found,
        folder,
        rows=ROWS,
        optimizer="galore_adamw",
        **{
            "optimizer_options": OPTIONS,
            "trainer_class": EXACT,
            "update": Ratios(roles={"value": 4.0}),
            "save_strategy": "steps",
            "save_steps": 1,
            **changes,
        },
    )
    return model, found, trainer


def test_galore_step_by_hand(tmp_path: Path) -> None:
    # The gradient 5 (u v^T) with u = (0.6, 0.8), v = (1, 0, 0) has rank 1. It is wide, so it is
    # projected from the left: u^T G = (5, 0, 0) up to the sign of u. Adam's first step of that is
    # (1, 0, 0) (eps aside), which goes back as scale * u (1, 0, 0), times the rate.
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = 5 * torch.tensor([[0.6, 0.0, 0.0], [0.8, 0.0, 0.0]])
    group = {"params": [weight], "rank": 1, "update_proj_gap": 9, "scale": 4.0}
    optimizer = pytorch_optimizer.GaLore([{**group, "projection_type": "std"}], lr=0.1, eps=1e-8)
    optimizer.step()
    expected = -0.1 * 4 * torch.tensor([[0.6, 0.0, 0.0], [0.8, 0.0, 0.0]])
    torch.testing.assert_close(weight.data, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_galore_resumes_to_the_last_bit_with_the_ratio_at_every_step(tmp_path, name) -> None:
    whole, _, trainer = galore_trainer(tmp_path, name)
    trainer.train()
    rates = {group["label"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates["value"] == pytest.approx(4 * rates["query"])
    states = [state for state in trainer.optimizer.state.values() if "projector" in state]
    assert len(states) == 4  # query and value of two layers, of GPT-2 without its biases
    assert all(min(state["exp_avg"].shape) == 2 for state in states)
    # The projection changes every second step, so one is saved, one made anew.
    again, _, trainer = galore_trainer(tmp_path, name)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for key, parameter in whole.named_parameters():
        assert torch.equal(parameter, again.get_parameter(key)), key


def test_state_of_galore_is_plain_when_it_is_asked_for_and_live_stays_whole() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    group = {"params": [weight], **OPTIONS, "projection_type": "std"}
    optimizer = with_plain_state(pytorch_optimizer.GaLore([group]))
    optimizer.step()
    plain = optimizer.state_dict()["state"][0]["projector"]
    assert plain.keys() == {"ortho_matrix", "last_svd_step"}
    assert torch.equal(plain["ortho_matrix"], optimizer.state[weight]["projector"].ortho_matrix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 17}, r"rank=17 is not allowed: give an integer from 1 to 16 = min\(out, in\) of"),
        ({"projection_type": "full"}, "projection_type='full' is not allowed: give one of std"),
        ({"scale": 0.0}, r"scale=0\.0 is not allowed: give a finite number above 0"),
        ({"scale": float("nan")}, r"scale=nan is not allowed: give a finite number above 0"),
    ],
)
def test_galore_refuses_options_that_do_not_fit(tmp_path, options, message) -> None:
    _, _, trainer = galore_trainer(tmp_path, optimizer_options={**OPTIONS, **options})
    with pytest.raises(InputError, match=message):
        trainer.train()


def test_galore_refuses_an_adapter_before_a_run_begins(llama, pairs, tmp_path) -> None:
    settings = {"optimizer.name": "galore_adamw", "training.max_length": 32}
    with pytest.raises(NotComposable, match="train the base itself with delta=in_place"):
        finetune(llama, pairs, "lora", output=tmp_path / "run", assignments=settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "option rank=0 is not allowed: give 1 or more"),
        ({"rank": 64}, r"rank=64 is not allowed: give an integer from 1 to \d+ = min\(out, in\)"),
        ({"update_gap": 0}, "option update_proj_gap=0 is not allowed: give 1 or more"),
        ({"scale": -1.0}, r"scale=-1\.0 is not allowed: give a finite number above 0"),
        ({"optimizer.betas": (0.9, 1.0)}, r"betas=\(0\.9, 1\.0\) is not allowed"),
    ],
)
def test_galore_refuses_a_wrong_value_before_a_run_begins(
    llama, pairs, tmp_path, setting, message
) -> None:
    settings = {"training.max_length": 32, **setting}
    with pytest.raises(InputError, match=message):
        finetune(llama, pairs, "galore", output=tmp_path / "run", assignments=settings)
    assert not (tmp_path / "run").exists()


def test_what_the_galore_package_refuses_itself_is_an_input_error(tmp_path) -> None:
    # A recipe refuses such rates of decay before; here they come past it.
    _, _, trainer = galore_trainer(tmp_path, betas=(0.9, 1.5))
    with pytest.raises(InputError, match=r"optimizer 'galore_adamw' refuses what"):
        trainer.train()


def test_galore_trains_a_head_without_a_projection(tmp_path: Path) -> None:
    base = tiny("bert", "sequence_classification")
    found = places.of(base)
    model = prepare_in_place(base, found, ByRole()(base, found))
    model.classifier.requires_grad_(True)
    rows = [{**row, "labels": row["labels"][-1] % 2} for row in ROWS]
    trainer = trainer_of(
        model,
        found,
        tmp_path,
        rows=rows,
        optimizer="galore_adamw",
        optimizer_options=OPTIONS,
        objective=SequenceClassification(),
        max_steps=1,
    )
    trainer.data_collator = _classes
    trainer.train()
    projected = {group["label"]: "rank" in group for group in trainer.optimizer.param_groups}
    assert projected == {"query": True, "value": True, "head": False}
    head = trainer.optimizer.state[model.classifier.weight]
    assert head["exp_avg"].shape == model.classifier.weight.shape


def _classes(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.stack([row["input_ids"][:4] for row in rows])
    return {"input_ids": ids, "labels": torch.stack([row["labels"] for row in rows])}


def test_recipe_galore_runs_and_its_options_are_reached(llama, pairs, tmp_path) -> None:
    settings = {"training.max_length": 32, "training.steps": 2, "rank": 4, "scale": 2.0}
    run = finetune(llama, pairs, "galore", output=tmp_path / "run", assignments=settings)
    # Two moments of the smaller side and the projection, in place of two moments of the whole.
    assert run.costs["optimizer_bytes"] < 8 * run.costs["trainable_parameters"] / 2
    assert named("galore", {"rank": 4}).optimizer.options["rank"] == 4


def test_recipe_galore_hosts_efficientft() -> None:
    recipe = named("efficientft", {"host": "galore"})
    assert recipe.selection.roles == ("query", "value")
    assert recipe.optimizer.name == "galore_adamw"
    assert recipe.optimizer.options["scale"] == 4.0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_predicted_bytes_of_galore_are_those_that_it_takes(tmp_path: Path, name: str) -> None:
    model, found, trainer = galore_trainer(tmp_path, name, save_strategy="no", max_steps=1)
    trainer.train()
    predicted = predicted_costs(
        model, found, sequences=1, sequence_length=4, optimizer="galore_adamw", options=OPTIONS
    )
    assert predicted["optimizer_bytes"] == optimizer_bytes(trainer.optimizer)

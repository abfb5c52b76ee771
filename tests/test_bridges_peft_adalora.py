"""AdaLoRA in the run: its schedule, its ranks across a resume, its penalty, and who keeps ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import Trainer

from deltatune import recipe as recipes
from deltatune.bridges.carriers import carrier_of
from deltatune.errors import InputError, NotComposable
from deltatune.recipe import Recipe
from deltatune.run import finetune
from tests.models import tiny
from tests.runs import adapter_of, losses_of
from tests.test_bridges_trainer import KeepGradients
from tests.training import arguments, collate, token_rows

SHORT = {
    "first_rank": 4,
    "target_rank": 2,
    "training.epochs": 4,
    "training.batch_size": 6,
    "training.checkpoint_every": 2,
    "training.max_length": 32,
}


def run(model: Path, data: Path, output: Path, *, resume: bool = False) -> Any:
    return finetune(
        model,
        data,
        "adalora",
        output=output,
        assignments=SHORT,
        resume=resume,
        console=Console(quiet=True),
    )


def test_ranks_resume_to_the_last_bit(
    llama: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(llama, pairs, tmp_path / "whole")
    from deltatune.bridges.progress import Progress

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:  # among the steps that give up ranks
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "on_step_begin", stop, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run(llama, pairs, tmp_path / "run")
    monkeypatch.undo()
    again = run(llama, pairs, tmp_path / "run", resume=True)
    wanted, given = adapter_of(whole.folder), adapter_of(again.folder)
    assert wanted.keys() == given.keys()
    assert all(torch.equal(wanted[name], given[name]) for name in wanted)
    assert losses_of(whole.folder) == losses_of(again.folder)
    costs = json.loads((whole.folder / "costs.json").read_text(encoding="utf-8"))
    ranks, shares = costs["final_rank_by_role"], costs["final_rank_share_by_role"]
    assert sum(ranks.values()) == 2 * 14  # seven projections of two layers, two ranks each
    assert sum(shares.values()) == pytest.approx(1)


def test_schedule_is_stretched_to_the_steps_of_the_run() -> None:
    model: Any = recipes.named("adalora", {"warmup": 0.25, "final": 0.5}).prepare(
        tiny("llama", "causal_lm")
    )
    carrier = carrier_of(recipes.named("adalora").delta)
    begin = carrier.rhythm(model).begin
    assert begin is not None
    begin(8)
    config = model.peft_config["default"]
    assert (config.tinit, config.tfinal, config.total_step) == (2, 4, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_number_of_ranks_never_trains(dtype: torch.dtype) -> None:
    base = tiny("llama", "causal_lm").to(dtype)
    model = recipes.named("adalora").prepare(base, task_type="CAUSAL_LM")
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B", "lora_E"}


def test_penalty_is_that_of_peft() -> None:
    model: Any = recipes.named("adalora").prepare(tiny("llama", "causal_lm"), task_type="CAUSAL_LM")
    ids = torch.tensor([[5, 6, 7, 8]])
    with_penalty = model(input_ids=ids, labels=ids).loss
    plain = model.base_model.model(input_ids=ids, labels=ids).loss
    (penalty,) = carrier_of(recipes.named("adalora").delta).rhythm(model).auxiliary
    torch.testing.assert_close(penalty(model), with_penalty - plain)


class OwnLoss(Trainer):
    """A trainer that forms its loss from the logits, as those for preferences do."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        return model(input_ids=inputs["input_ids"]).logits.square().mean()


@pytest.mark.parametrize("kind", [Trainer, OwnLoss])
def test_penalty_counts_once_a_step_whoever_forms_the_loss(kind: Any, tmp_path: Path) -> None:
    recipe = recipes.named("adalora", {"first_rank": 4, "target_rank": 2})
    model: Any = recipe.prepare(tiny("llama", "causal_lm"), task_type="CAUSAL_LM")
    (penalty,) = carrier_of(recipe.delta).rhythm(model).auxiliary
    factors = {n: p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n}
    alone = torch.autograd.grad(penalty(model), list(factors.values()))
    trainer = recipe.attach(
        recipe.trainer_class(kind)(
            model=model,
            args=arguments(tmp_path, max_steps=1, gradient_accumulation_steps=2, max_grad_norm=0.0),
            train_dataset=token_rows(4),
            data_collator=collate,
        )
    )
    keep = KeepGradients(model)
    trainer.add_callback(keep)
    trainer.train()
    # The singular values start at 0, so that nothing else reaches the factors in the first step.
    for (name, _), wanted in zip(factors.items(), alone, strict=True):
        torch.testing.assert_close(keep.steps[0][name], wanted)
    assert model.peft_config["default"].orth_reg_weight > 0  # as given, where it is saved


def test_penalty_is_refused_where_a_trainer_cannot_add_it(tmp_path: Path) -> None:
    recipe = recipes.named("adalora")
    model = recipe.prepare(tiny("llama", "causal_lm"))
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=token_rows(2))
    with pytest.raises(NotComposable, match=r"plain Trainer cannot do: .*recipe\.trainer_class"):
        recipe.attach(trainer)


def test_ranks_that_cannot_be_given_up_are_refused() -> None:
    delta = peft.AdaLoraConfig(init_r=4, target_r=4, total_step=10)
    with pytest.raises(InputError, match=r"target_r=4 is not allowed.*1 to 3"):
        Recipe(delta=delta).prepare(tiny("llama", "causal_lm"))
    with pytest.raises(InputError, match=r"warmup=0\.5 and final=0\.5 are not allowed"):
        recipes.named("adalora", {"warmup": 0.5})


def test_adalora_survives_its_plain_form() -> None:
    recipe = recipes.named("adalora")
    assert recipes.from_plain(recipe.to_plain()) == recipe

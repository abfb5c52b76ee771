from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_optimizer import is_optimizer_factory

from deltatune.bridges.names import trained_parameters
from deltatune.bridges.optimizer import attach_optimizer
from deltatune.errors import InputError, NotComposable
from deltatune.updates.chain import Chain
from deltatune.updates.ratios import Ratios
from deltatune.updates.weight_decay import WeightDecay
from tests.training import (
    PEFT_ASKS_OLD_NAME,
    arguments,
    collate,
    lora_llama,
    token_rows,
    trainer_of,
)

pytestmark = PEFT_ASKS_OLD_NAME
ROWS = token_rows(4)


def groups_of(trainer: Any) -> list[dict[str, Any]]:
    """Return the optimizer's groups, with names in place of parameters."""
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    return [
        {**group, "params": [names[id(p)] for p in group["params"]]}
        for group in trainer.create_optimizer().param_groups
    ]


def test_groups_hold_every_trained_parameter_once_at_its_rate(tmp_path: Path) -> None:
    model, sites = lora_llama()
    update = Ratios(roles={"value": 4.0})
    trainer = trainer_of(model, sites, tmp_path, rows=ROWS, update=update, weight_decay=0.1)
    groups = groups_of(trainer)
    assert [(g["label"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("query", 1e-2, 0.1),
        ("value", 4e-2, 0.1),
    ]
    names = [name for group in groups for name in group["params"]]
    trained = [p.name for p in trained_parameters(model, sites)]
    assert sorted(names) == sorted(trained)


def test_weight_decay_rule_reaches_the_optimizer(tmp_path: Path) -> None:
    model, sites = lora_llama()
    update = Chain(updates=(Ratios(roles={"value": 4.0}), WeightDecay(exempt=("value",))))
    trainer = trainer_of(model, sites, tmp_path, rows=ROWS, update=update, weight_decay=0.1)
    assert {g["label"]: g["weight_decay"] for g in groups_of(trainer)} == {
        "query": 0.1,
        "value": 0.0,
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw_torch", "AdamW"), ("sgd", "SGD"), ("adafactor", "Adafactor"), ("rmsprop", "RMSprop")],
)
def test_optimizer_is_the_one_that_transformers_names_so(
    tmp_path: Path, name: str, kind: str
) -> None:
    model, sites = lora_llama()
    trainer = trainer_of(
        model, sites, tmp_path, rows=ROWS, update=Ratios(roles={"value": 4.0}), optimizer=name
    )
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == kind
    assert [group["label"] for group in trainer.optimizer.param_groups] == ["query", "value"]


def test_betas_and_epsilon_reach_adam(tmp_path: Path) -> None:
    model, sites = lora_llama()
    trainer = Trainer(model, arguments(tmp_path), data_collator=collate, train_dataset=ROWS)
    attach_optimizer(
        trainer, update=Ratios(), sites=sites, learning_rate=1e-3, betas=(0.8, 0.9), epsilon=1e-4
    )
    (group,) = {g["label"]: g for g in groups_of(trainer) if g["label"] == "query"}.values()
    assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-4)


def test_optimizer_takes_the_parameters_that_are_there_when_training_starts(tmp_path: Path) -> None:
    # Sharding replaces parameters between the trainer's making and its start; here by hand.
    model, sites = lora_llama()
    trainer = trainer_of(model, sites, tmp_path, rows=ROWS)
    name = next(n for n, p in model.named_parameters() if p.requires_grad)
    path, _, last = name.rpartition(".")
    replaced = nn.Parameter(model.get_parameter(name).detach().clone())
    setattr(model.get_submodule(path), last, replaced)
    optimizer = trainer.create_optimizer()
    assert any(p is replaced for group in optimizer.param_groups for p in group["params"])


def test_unknown_optimizer_lists_the_nearest_names(tmp_path: Path) -> None:
    model, sites = lora_llama()
    with pytest.raises(
        InputError, match=r"'adamw_tourch' is not known: choose one of 'adamw_torch'"
    ):
        trainer_of(model, sites, tmp_path, rows=ROWS, optimizer="adamw_tourch")


def test_optimizer_without_its_package_says_so(tmp_path: Path) -> None:
    model, sites = lora_llama()
    with pytest.raises(InputError, match=r"optimizer 'lion_8bit'"):
        trainer_of(model, sites, tmp_path, rows=ROWS, optimizer="lion_8bit")


def test_optimizer_that_forms_its_own_groups_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (torch.optim.AdamW, {"lr": 1e-3, "params": []})
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda *_: own))
    model, sites = lora_llama()
    with pytest.raises(NotComposable, match=r"'adamw_torch' forms its own groups"):
        trainer_of(model, sites, tmp_path, rows=ROWS)


def test_trainer_with_an_optimizer_is_refused(tmp_path: Path) -> None:
    model, sites = lora_llama()
    trainer = trainer_of(model, sites, tmp_path, rows=ROWS)
    trainer.create_optimizer()
    with pytest.raises(InputError, match=r"already has an optimizer"):
        attach_optimizer(trainer, update=Ratios(), sites=sites, learning_rate=1e-3)


def test_trainer_reads_the_optimizer_factory_only_when_it_needs_it(tmp_path: Path) -> None:
    model, _ = lora_llama()
    trainer = Trainer(model, arguments(tmp_path), train_dataset=ROWS, data_collator=collate)
    built = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    factory = lambda: lambda given: built if given is model else None  # noqa: E731
    assert is_optimizer_factory(factory)
    assert not is_optimizer_factory(torch.optim.SGD)
    trainer.optimizer_cls_and_kwargs = (factory, {})  # type: ignore[assignment]
    assert trainer.create_optimizer() is built


def test_optimizer_state_loses_large_integers_in_half_precision() -> None:
    # The reason why indices are buffers: state is cast to the parameter's dtype when it is loaded,
    # and bfloat16 has 8 bits of mantissa.
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    state = optimizer.state_dict()
    state["state"] = {0: {"index": torch.tensor([257])}}
    optimizer.load_state_dict(state)
    assert optimizer.state[parameter]["index"].dtype == torch.bfloat16
    assert optimizer.state[parameter]["index"].item() == 256


def test_plain_trainer_loads_its_optimizer_file_without_objects(tmp_path: Path) -> None:
    # So only tensors and plain values may go into an optimizer's state.
    model, _ = lora_llama()
    trainer = Trainer(
        model,
        arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=1),
        train_dataset=ROWS,
        data_collator=collate,
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-1"
    trainer._load_optimizer_and_scheduler(str(checkpoint))
    torch.save({"state": {}, "value": Path("x")}, checkpoint / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"Weights only load failed"):
        trainer._load_optimizer_and_scheduler(str(checkpoint))


def test_plain_trainer_cannot_resume_two_active_adapters(tmp_path: Path) -> None:
    # So a composite is one adapter, never two that are active together.
    def made() -> Trainer:
        model, _ = lora_llama()
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
        model.base_model.set_adapter(["default", "second"])
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        return Trainer(
            model, arguments(tmp_path, **options), train_dataset=ROWS, data_collator=collate
        )

    made().train()
    with pytest.raises(ValueError, match=r"doesn't match the size of optimizer's group"):
        made().train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


class _Events(TrainerCallback):
    """Notes the order of events and whether the gradient is clipped yet."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.events: list[tuple[str, float]] = []

    def _note(self, event: str) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm().item() if gradients else 0.0
        self.events.append((event, norm))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._note("step_begin")

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._note("substep_end")

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._note("pre_optimizer_step")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._note("optimizer_step")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._note("step_end")


def test_trainer_has_no_event_between_backward_and_clipping(tmp_path: Path) -> None:
    model, sites = lora_llama()
    events = _Events(model)
    trainer_of(
        model,
        sites,
        tmp_path,
        rows=ROWS,
        callbacks=[events],
        gradient_accumulation_steps=2,
        max_grad_norm=1e-3,
    ).train()
    assert [event for event, _ in events.events] == [
        "step_begin",
        "substep_end",
        "pre_optimizer_step",
        "optimizer_step",
        "step_end",
    ]
    norms = dict(events.events)
    assert norms["step_begin"] == norms["step_end"] == 0.0
    # The first event that sees the whole step's gradient sees it clipped.
    assert norms["pre_optimizer_step"] == pytest.approx(1e-3, rel=1e-2)

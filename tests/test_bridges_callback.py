from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.checkpoints import last_complete_checkpoint, with_exact_checkpoints
from deltatune.bridges.interruption import Interruption
from deltatune.bridges.trainer import with_objective
from deltatune.errors import Diverged, InputError, Interrupted, NotComposable, WorkError
from deltatune.objectives.next_token import NextToken
from deltatune.updates.ratios import Ratios
from deltatune.updates.update import Factor
from tests.training import PEFT_ASKS_OLD_NAME, arguments, lora_llama, token_rows, trainer_of

pytestmark = PEFT_ASKS_OLD_NAME
ROWS = token_rows(6)
NORM = "base_model.model.model.norm.weight"


class Alternate:
    """Trains queries in even steps and values in odd ones."""

    changes_who_trains: ClassVar[bool] = True

    def factors(self, parameters: Any, sites: Any) -> dict[str, Factor]:
        return {}

    def live(self, step: int, parameters: Any, *, steps: int) -> frozenset[str] | None:
        role = ("query", "value")[step % 2]
        return frozenset(p.name for p in parameters if p.role == role)


class KeepWeights(TrainerCallback):
    """Keeps the trained weights after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.steps = [self._now()]

    def _now(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if "lora_" in n}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(self._now())


def with_callback(folder: Path, update: Any = None, options: Any = None, **changes: Any) -> Any:
    model, sites = lora_llama()
    update = update or Ratios()
    trainer = trainer_of(model, sites, folder, update=update, **{"rows": ROWS, **changes})
    trainer.add_callback(DeltaCallback(trainer, update=update, sites=sites, **(options or {})))
    return trainer


def test_callback_switches_who_trains_in_each_step(tmp_path: Path) -> None:
    trainer = with_callback(tmp_path, Alternate(), weight_decay=0.1, max_steps=6)
    keep = KeepWeights(trainer.model)
    trainer.add_callback(keep)
    trainer.train()
    for step in range(6):
        before, after = keep.steps[step], keep.steps[step + 1]
        frozen, live = ("v_proj", "q_proj") if step % 2 == 0 else ("q_proj", "v_proj")
        for name, weight in after.items():
            if frozen in name:
                assert torch.equal(weight, before[name]), (step, name)
            elif live in name and "lora_B" in name:
                assert not torch.equal(weight, before[name]), (step, name)
    assert all(p.requires_grad for n, p in trainer.model.named_parameters() if "lora_" in n)


def test_callback_refuses_changing_sets_under_ddp_that_does_not_look(tmp_path: Path) -> None:
    trainer = with_callback(tmp_path, Alternate())
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, DeltaCallback)]
    trainer.model_wrapped = type("Wrapped", (), {"find_unused_parameters": False})()
    with pytest.raises(NotComposable, match=r"set ddp_find_unused_parameters=True"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


class NotFinite(NextToken):
    """A loss that leaves the finite numbers in the third step."""

    bad: ClassVar[float] = math.nan

    def total(self, outputs: Any, batch: Any, *, progress: float = 0.0) -> Tensor:
        summed = super().total(outputs, batch, progress=progress)
        return summed * self.bad if progress >= 0.5 else summed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_callback_stops_before_a_loss_that_is_not_finite_touches_the_weights(
    tmp_path: Path, bad: float
) -> None:
    objective = type("Bad", (NotFinite,), {"bad": bad})()
    trainer = with_callback(tmp_path, objective=objective, max_steps=4)
    with pytest.raises(Diverged, match=rf"loss of step 3 is {bad}: lower the value learning rate"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def guarded(folder: Path, constant: float, **options: Any) -> Any:
    chosen = {"constant_loss": constant, "warmup_steps": 25, "check_movement_after": 0, **options}
    return with_callback(folder, options=chosen, max_steps=30, learning_rate=1e-5)


def test_callback_stops_a_run_that_stays_above_the_constant_predictor(tmp_path: Path) -> None:
    # The loss stays near ln 64 = 4.16.
    with pytest.raises(Diverged, match=r"last 20 losses is 4\.\d+ at step 26, above the 4\.0000"):
        guarded(tmp_path, 4.0).train()


@pytest.mark.parametrize(
    ("constant", "options"),
    [(4.3, {}), (4.0, {"warmup_steps": 30}), (4.13, {"margin": 0.05})],
)
def test_callback_lets_other_runs_go_on(
    tmp_path: Path, constant: float, options: dict[str, Any]
) -> None:
    trainer = guarded(tmp_path, constant, **options)
    trainer.train()
    assert trainer.state.global_step == 30


def test_penalties_do_not_count_against_the_constant_predictor(tmp_path: Path) -> None:
    trainer = guarded(tmp_path, 4.3)
    trainer.auxiliary = (lambda model: torch.tensor(9.0),)
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 13


def test_advice_names_the_fastest_group(tmp_path: Path) -> None:
    update = Ratios(roles={"value": 8.0})
    trainer = with_callback(tmp_path, update, objective=NotFinite(), max_steps=4)
    with pytest.raises(Diverged, match=r"the fastest group, value, has 0\.08"):
        trainer.train()


def test_callback_finds_what_should_train_but_does_not_move(tmp_path: Path) -> None:
    trainer = with_callback(tmp_path, options={"check_movement_after": 2})
    trainer.model.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    with pytest.raises(WorkError, match=r"^unused should train but did not move"):
        trainer.train()


def test_callback_finds_what_should_be_frozen_but_moves(tmp_path: Path) -> None:
    trainer = with_callback(tmp_path, options={"check_movement_after": 2})

    class Meddle(TrainerCallback):
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            with torch.no_grad():
                trainer.model.get_parameter(NORM).add_(1e-3)

    trainer.callback_handler.callbacks.insert(0, Meddle())
    with pytest.raises(WorkError, match=rf"^{NORM} should be frozen but moved"):
        trainer.train()


def test_callback_is_silent_when_everything_moves_as_it_should(tmp_path: Path) -> None:
    trainer = with_callback(tmp_path, options={"check_movement_after": 2}, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3


def test_callback_needs_a_trainer_that_tells_its_losses(tmp_path: Path) -> None:
    model, sites = lora_llama()
    trainer = Trainer(model, arguments(tmp_path))
    with pytest.raises(InputError, match=r"with_objective"):
        DeltaCallback(trainer, update=Ratios(), sites=sites)


class SignalInMicroBatch(TrainerCallback):
    """Sends this process a signal in the middle of the third optimizer step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_step_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    trainer = with_callback(
        tmp_path,
        trainer_class=with_objective(with_exact_checkpoints(Trainer)),
        callbacks=[SignalInMicroBatch(number)],
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        save_strategy="epoch",
    )
    with pytest.raises(Interrupted, match=rf"{number.name} after step 3 of 6; .*--resume"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert signal.getsignal(number) is before


def test_second_signal_acts_as_without_us() -> None:
    # A shell starts what it puts into the background with SIGINT ignored: not so here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert interruption.received is signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_interruption_leaves_signals_alone_in_another_thread() -> None:
    handlers = []

    def work() -> None:
        with Interruption():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]

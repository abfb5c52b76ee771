from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.checkpoints import last_complete_checkpoint, with_exact_checkpoints
from deltatune.bridges.interruption import Interruption
from deltatune.bridges.trainer import with_objective
from deltatune.errors import Diverged, InputError, Interrupted, NotComposable, WorkError
from deltatune.objectives.next_token import NextToken
from deltatune.sites import Sites
from deltatune.updates.ratios import Ratios
from deltatune.updates.update import Factor
from tests.training import (
    PEFT_ASKS_OLD_NAME,
    arguments,
    collate,
    lora_llama,
    token_rows,
    trainer_of,
)

pytestmark = PEFT_ASKS_OLD_NAME
ROWS = token_rows(6)


class KeepGradients(TrainerCallback):
    """Keeps the gradients of every step, as the optimizer is about to see them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = self.model.named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in found if p.grad is not None})


def nonzero_llama() -> tuple[Any, Sites]:
    """Return a tiny Llama whose LoRA is not at its start, so that no gradient is trivially zero."""
    model, sites = lora_llama()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    return model, sites


def one_step(folder: Path, **changes: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]], Any]:
    """Train one optimizer step over `ROWS` and return its gradients and the log."""
    model, sites = nonzero_llama()
    keep = KeepGradients(model)
    trainer = trainer_of(
        model, sites, folder, rows=ROWS, callbacks=[keep], max_grad_norm=0.0, max_steps=1, **changes
    )
    trainer.train()
    return keep.steps[0], trainer.state.log_history, trainer


def expected_gradient(model: Any) -> tuple[dict[str, Tensor], float]:
    """Return the gradient of the mean over all tokens of all rows, by plain PyTorch."""
    batch = collate(ROWS)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()))
    return dict(zip(trained, gradients, strict=True)), loss.item()


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        # Other shapes sum in another order: float32 keeps about six digits of these.
        torch.testing.assert_close(gradient, second[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("batch_size", "accumulation"),
    [(6, 1), (3, 2), (2, 3), (1, 6), (4, 2)],
)
def test_gradient_is_the_mean_over_the_step_however_it_is_split(
    tmp_path: Path, batch_size: int, accumulation: int
) -> None:
    # Rows have different lengths, so micro-batches hold different numbers of supervised tokens and
    # are padded differently; (4, 2) leaves a second micro-batch of two rows.
    gradients, log, _ = one_step(
        tmp_path,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )
    expected, loss = expected_gradient(nonzero_llama()[0])
    assert_close(gradients, expected)
    assert log[0]["loss"] == pytest.approx(loss, rel=1e-5)


def test_gradient_is_the_same_in_versions_without_the_scaling_attribute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before transformers 5.19, Trainer had only these two conditions.
    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        accepts = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        if not accepts and self.compute_loss_func is None:
            loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()  # type: ignore[no-any-return]

    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    expected, _, _ = one_step(tmp_path, **split)
    monkeypatch.setattr(Trainer, "training_step", training_step)
    gradients, _, _ = one_step(tmp_path, **split)
    assert_close(gradients, expected)


def test_trainer_still_has_the_names_that_the_bridge_relies_on() -> None:
    for name in ("get_tp_size", "get_cp_size", "get_sp_size", "get_batch_samples"):
        assert callable(getattr(Trainer, name))
    assert getattr(Trainer, "loss_is_scaled_for_ga", None) is None


def test_evaluation_loss_is_the_mean_over_all_tokens(tmp_path: Path) -> None:
    model, sites = lora_llama()
    trainer = trainer_of(
        model, sites, tmp_path, rows=ROWS, evaluated=ROWS, per_device_eval_batch_size=4
    )
    _, loss = expected_gradient(model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_objective_sees_how_far_training_is(tmp_path: Path) -> None:
    seen = []

    class Watching(NextToken):
        def total(self, outputs: Any, batch: Any, *, progress: float = 0.0) -> Tensor:
            seen.append(progress)
            return super().total(outputs, batch, progress=progress)

    model, sites = lora_llama()
    trainer_of(model, sites, tmp_path, rows=ROWS, objective=Watching(), max_steps=4).train()
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_batch_without_labels_is_refused(tmp_path: Path) -> None:
    model, sites = lora_llama()
    trainer = trainer_of(model, sites, tmp_path, rows=ROWS)
    trainer.data_collator = lambda rows: {"input_ids": collate(rows)["input_ids"]}
    with pytest.raises(InputError, match=r"no 'labels'.*it has input_ids"):
        trainer.train()


def squared_norm(model: nn.Module) -> Tensor:
    up = [p for n, p in model.named_parameters() if "lora_B" in n]
    return torch.stack([p.square().sum() for p in up]).sum()


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("own", [True, False])
def test_auxiliary_term_counts_once_per_step(tmp_path: Path, accumulation: int, own: bool) -> None:
    model = nonzero_llama()[0]

    def gradients(auxiliary: Any) -> dict[str, Tensor]:
        trained, _ = lora_llama()
        trained.load_state_dict(model.state_dict())
        keep = KeepGradients(trained)
        trainer: Any = with_objective(Trainer)(
            model=trained,
            args=arguments(
                tmp_path,
                per_device_train_batch_size=6 // accumulation,
                gradient_accumulation_steps=accumulation,
                max_steps=1,
                max_grad_norm=0.0,
            ),
            train_dataset=ROWS,
            data_collator=collate,
            callbacks=[keep],
            objective=NextToken() if own else None,
            auxiliary=auxiliary,
        )
        trainer.train()
        return keep.steps[0]

    plain, added = gradients(()), gradients((squared_norm,))
    for name, gradient in added.items():
        # d/dB |B|^2 = 2 B = 0.1 for every entry; float32 sums in another order.
        extra = torch.full_like(gradient, 0.1 if "lora_B" in name else 0.0)
        torch.testing.assert_close(gradient - plain[name], extra, rtol=1e-4, atol=1e-6)


def test_own_loss_of_the_trainer_stays_without_an_objective(tmp_path: Path) -> None:
    def weights(trainer_class: Any) -> list[Tensor]:
        model, _ = lora_llama()
        trainer = trainer_class(
            model=model,
            args=arguments(tmp_path, gradient_accumulation_steps=2),
            train_dataset=ROWS,
            data_collator=collate,
        )
        trainer.train()
        return [p.detach() for p in model.parameters() if p.requires_grad]

    ours, theirs = weights(with_objective(Trainer)), weights(Trainer)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# The callback.


class Alternate:
    """Trains queries in even steps and values in odd ones."""

    changes_who_trains: ClassVar[bool] = True

    def factors(self, parameters: Any, sites: Any) -> dict[str, Factor]:
        return {}

    def live(self, step: int, parameters: Any) -> frozenset[str] | None:
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


NORM = "base_model.model.model.norm.weight"


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
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


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

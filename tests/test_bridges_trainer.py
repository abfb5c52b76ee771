from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from deltatune.bridges.trainer import with_objective
from deltatune.errors import InputError
from deltatune.objectives.next_token import NextToken
from deltatune.sites import Sites
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

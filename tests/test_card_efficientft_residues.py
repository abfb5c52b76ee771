"""Check 11 of the card on EfficientFT: the toy task over five seeds, and the guard on collapses.

All seeds and ratios train at once, stacked: the same model and AdamW step for each, which a test
compares with `torch.optim.AdamW`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from deltatune import sites as places
from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.trainer import StepLosses
from deltatune.errors import Diverged
from deltatune.updates.ratios import Ratios
from tests.test_card_efficientft import classify, residue_classifier, residue_rows

SEEDS = range(5)
BATCH = 32
CHANCE = math.log(4)


@dataclass(frozen=True)
class Job:
    """One training: the seed of model and data, the ratio, and eta."""

    seed: int
    ratio: float
    learning_rate: float = 1e-3


def is_trained(name: str) -> bool:
    return ".query." in name or ".value." in name or name.startswith("classifier")


def examples(number: int, seed: int) -> tuple[Tensor, Tensor]:
    rows = residue_rows(number, seed)
    ids, labels = (torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels"))
    return ids, labels


class Stacked:
    """Models of several jobs, whose parameters have the job as their first axis."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        models = [residue_classifier(job.seed).train() for job in jobs]
        parameters, self.buffers = stack_module_state(models)
        self.model = models[0]
        self.frozen = {n: p.detach() for n, p in parameters.items() if not is_trained(n)}
        self.trained = {
            n: p.detach().requires_grad_() for n, p in parameters.items() if is_trained(n)
        }

    def losses(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of each job, `(jobs,)`, on its own rows of `(jobs, batch, seq)`."""

        def logits(trained: Any, frozen: Any, buffers: Any, ids: Tensor) -> Tensor:
            state = ({**trained, **frozen}, buffers)
            found: Tensor = functional_call(self.model, state, (ids,)).logits
            return found

        scores = vmap(logits)(self.trained, self.frozen, self.buffers, ids)
        lost = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
        return lost.unflatten(0, labels.shape).mean(dim=1)

    def rate(self, name: str, parameter: Tensor) -> Tensor:
        rates = [j.learning_rate * (j.ratio if ".value." in name else 1) for j in self.jobs]
        return torch.tensor(rates).view(-1, *[1] * (parameter.dim() - 1))

    def train(self, steps: int) -> Tensor:
        """AdamW without decay; return the loss of each step, `(steps, jobs)`."""
        drawn = {seed: examples(BATCH * steps, seed) for seed in {j.seed for j in self.jobs}}
        ids, labels = (torch.stack([drawn[j.seed][i] for j in self.jobs]) for i in (0, 1))
        means = {n: torch.zeros_like(p) for n, p in self.trained.items()}
        squares = {n: torch.zeros_like(p) for n, p in self.trained.items()}
        recorded = []
        for step in range(1, steps + 1):
            rows = slice(BATCH * (step - 1), BATCH * step)
            losses = self.losses(ids[:, rows], labels[:, rows])
            gradients = torch.autograd.grad(losses.sum(), list(self.trained.values()))
            recorded.append(losses.detach())
            for (name, parameter), gradient in zip(self.trained.items(), gradients, strict=True):
                mean, square = means[name], squares[name]
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient.square(), 0.001)
                moved = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
                parameter.data -= self.rate(name, parameter) * moved
        return torch.stack(recorded)

    def held_out(self) -> Tensor:
        """Loss on 512 further examples, `(jobs,)`."""
        drawn = {seed: examples(512, 1000 + seed) for seed in {j.seed for j in self.jobs}}
        with torch.no_grad():
            return self.losses(
                *(torch.stack([drawn[j.seed][i] for j in self.jobs]) for i in (0, 1))
            )


def held_out_losses(*ratios: float) -> Tensor:
    """Held-out loss after 50 steps, `(ratios, seeds)`."""
    jobs = Stacked([Job(seed, ratio) for ratio in ratios for seed in SEEDS])
    jobs.train(50)
    return jobs.held_out().view(len(ratios), len(SEEDS))


def test_stacked_training_is_that_of_adamw() -> None:
    stacked = Stacked([Job(1, 4.0), Job(2, 8.0)])
    losses = stacked.train(3)[:, 0]
    model = residue_classifier(1).train()
    fast = [p for n, p in model.named_parameters() if ".value." in n]
    slow = [p for n, p in model.named_parameters() if is_trained(n) and ".value." not in n]
    optimizer = torch.optim.AdamW(
        [{"params": slow, "lr": 1e-3}, {"params": fast, "lr": 4e-3}], weight_decay=0.0
    )
    ids, labels = examples(BATCH * 3, 1)
    for step in range(3):
        rows = slice(BATCH * step, BATCH * (step + 1))
        loss = model(ids[rows], labels=labels[rows]).loss
        # float32, summed in another order.
        assert loss.item() == pytest.approx(losses[step].item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_ratio_four_ends_below_ratio_one_in_four_of_five_seeds() -> None:
    of_one, of_four = held_out_losses(1, 4)
    assert (of_four < of_one).sum().item() >= 4
    assert of_four.mean() < of_one.mean() < CHANCE


@pytest.mark.slow
def test_mean_losses_over_five_seeds_are_those_of_the_card() -> None:
    means = held_out_losses(1, 2, 4, 8).mean(dim=1)
    # The card does not say how its examples were drawn. Over five ways to draw them, the means at
    # the four ratios stayed within 0.06 of its own, which this holds them to.
    assert means.tolist() == pytest.approx([1.286, 1.229, 1.132, 1.101], abs=0.06)
    assert (means.diff() < 0).all()


@pytest.fixture(scope="module")
def hundred_steps() -> Tensor:
    """Losses of 100 steps at ratio 8, `(100, rates, seeds)`: at eta 0.3, and at 1e-3."""
    jobs = Stacked([Job(seed, 8.0, eta) for eta in (0.3, 1e-3) for seed in SEEDS])
    return jobs.train(100).view(100, 2, len(SEEDS))


def guard(folder: Path, losses: list[float]) -> None:
    """Show losses of a run to the guard of training, one step after the other."""
    trainer = classify(folder, learning_rate=1e-3)
    update = Ratios(roles={"value": 8.0})
    callback = DeltaCallback(
        trainer, update=update, sites=places.of(residue_classifier(0)), constant_loss=CHANCE
    )
    for step, loss in enumerate(losses):
        trainer.step_losses = lambda loss=loss: StepLosses(loss, loss)
        callback.on_pre_optimizer_step(trainer.args, SimpleNamespace(global_step=step), None)


@pytest.mark.parametrize("seed", SEEDS)
def test_guard_fires_in_every_seed_that_falls_to_a_constant(
    seed: int, hundred_steps: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match=r"above the 1\.3863 of a constant prediction"):
        guard(tmp_path, hundred_steps[:, 0, seed].tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_guard_is_silent_in_every_seed_that_learns(
    seed: int, hundred_steps: Tensor, tmp_path: Path
) -> None:
    losses = hundred_steps[:, 1, seed]
    guard(tmp_path, losses.tolist())
    assert losses[-20:].mean() < CHANCE

"""Every recipe of the catalogue, trained for a few steps on a tiny model as a run does it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from deltatune import parts, planning
from deltatune.bridges import session
from deltatune.bridges.quiet import quiet
from deltatune.errors import InputError
from deltatune.optimizers import check_can_run
from deltatune.plan import Plan
from deltatune.recipe import named
from deltatune.request import Request
from tests.adapters import logits_of
from tests.folders import completions, model_folder, rows_file

RECIPES = tuple(parts.known("recipes"))
# What fits no tiny weight by default, and turns that eight steps hold.
TURNS = {"coefficient_steps": 2, "location_steps": 2, "until": 0.9}
SMALL: dict[str, dict[str, Any]] = {"loca": {"coefficients": 0.05, **TURNS}}
# Whatever the recipe is: eight rows a step, no warm-up in a run of eight steps.
FIELDS = {
    "training.steps": 8,
    "training.epochs": 8,
    "training.batch_size": 8,
    "training.max_length": 32,
    "training.warmup": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class TrainedRecipe:
    """A recipe after a few steps.

    Args:
        plan: of the run; `plan.model` is trained.
        start: the base's parameters before anything went in, by name.
        base_logits: of the base.
        logits: of the trained model.
        folder: holds the base in `model` and, once saved, the delta in `adapter`.
    """

    plan: Plan
    start: dict[str, Tensor]
    before_training: dict[str, Tensor]
    base_logits: Tensor
    logits: Tensor
    folder: Path

    def base(self) -> nn.Module:
        """Load the plain base again."""
        return self.plan.reload_base()


def trained(name: str, folder: Path, *, fields: dict[str, Any] | None = None) -> TrainedRecipe:
    """Train a recipe for a few steps; skip it where its optimizer's package is missing."""
    model = model_folder(folder / "model")
    rows = rows_file(folder / "rows.jsonl", completions(25))
    recipe = named(name, {**SMALL.get(name, {}), **FIELDS, **(fields or {})})
    try:
        check_can_run(recipe.optimizer.name)
    except InputError as error:
        pytest.skip(str(error))
    with quiet():
        plan = planning.plan(Request(model=model, data=rows), recipe, Console(file=io.StringIO()))
        base = plan.reload_base()
        before = {n: p.detach().clone() for n, p in plan.model.named_parameters()}
        trainer = _trainer(plan, folder)
        trainer.train()
    return TrainedRecipe(
        plan=plan,
        start={n: p.detach().clone() for n, p in base.named_parameters()},
        before_training=before,
        base_logits=logits_of(base),
        logits=logits_of(plan.model.eval()),
        folder=folder,
    )


def _trainer(plan: Plan, folder: Path) -> Any:
    return session.session(
        plan.model,
        plan.encoded.splits["train"],
        plan.collate,
        plan.recipe,
        plan.sites,
        objective=plan.objective,
        folder=folder / "checkpoints",
        meter=plan.meter,
        trains_base=plan.trains_base,
    )


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Tell whether two states are the same to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)

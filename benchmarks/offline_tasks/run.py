"""Every offline task on the base it is made for: untuned, the default recipe, and full tuning.

Three seeds of head, adapters and data order; the data are the same. Bases as small as these want
larger rates than the recipes' own, which are for larger models. Each recipe's rate is chosen once,
on the validation part of one task with the first seed, and kept for all tasks.

A run that is finished is taken as it is, so an interrupted benchmark goes on where it was; `--task`
trains some tasks only, two calls side by side keep two cores busy, and a last call without it
writes the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from racing import write
from rich.console import Console

from deltatune import finetune
from deltatune.data.offline.known_tasks import OWNER, known
from deltatune.data.offline.offline_task import OfflineTask
from deltatune.run_folder import RunFolder

# recipe -> the field that holds its rate, and the rates that are tried
RATES = {
    "efficientft": ("value_learning_rate", (2e-3, 1e-2)),
    "full": ("optimizer.learning_rate", (2e-4, 1e-3)),
}
RECIPES = tuple(RATES)
SEEDS = (0, 1, 2)
CHOSEN_ON = "aspect-sentiment"


def trained(
    task: OfflineTask, recipe: str, rate: float, seed: int, runs: Path, *, scored_on: str = "test"
) -> dict[str, Any]:
    """Train once, or take the finished run."""
    folder = RunFolder(runs / task.name / f"{recipe}-{rate:g}-{seed}-{scored_on}")
    if not folder.is_finished:
        finetune(
            task.base,
            f"{OWNER}{task.name}",
            recipe,
            output=folder.path,
            assignments={RATES[recipe][0]: rate, "training.seed": seed},
            resume=folder.path.exists(),
            scored_on=scored_on,
            console=Console(quiet=True),
        )
    scores, costs = folder.read(folder.evaluation), folder.read(folder.costs)
    return {
        "task": task.name,
        "recipe": recipe,
        RATES[recipe][0]: rate,
        "seed": seed,
        "scored_on": scored_on,
        "before": scores["before"]["metrics"][task.metric],
        "after": scores["after"]["metrics"][task.metric],
        "examples": scores["after"]["examples"],
        "wall_seconds": costs["wall_seconds"],
        "trainable_parameters": costs["trainable_parameters"],
        "optimizer_steps": costs["optimizer_steps"],
    }


def rate_of(recipe: str, runs: Path) -> tuple[float, list[dict[str, Any]]]:
    """Return the rate with the best validation score on one task, and the trials."""
    task, rates = known()[CHOSEN_ON], RATES[recipe][1]
    trials = [trained(task, recipe, rate, SEEDS[0], runs, scored_on="validation") for rate in rates]
    best = max(range(len(rates)), key=lambda i: trials[i]["after"])
    return rates[best], trials


def summary(task: OfflineTask, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of one task; the spread is the standard deviation over the seeds."""
    level = task.level()
    before = [row["before"] for row in rows]
    figures = {"untuned": statistics.mean(before), "chance": level.chance, "ceiling": level.ceiling}
    for recipe in RECIPES:
        after = [row["after"] for row in rows if row["recipe"] == recipe]
        figures[recipe] = statistics.mean(after)
        figures[f"{recipe}_spread"] = statistics.stdev(after)
        figures[f"{recipe}_lowest"] = min(after)
    figures["margin"] = figures["efficientft_lowest"] - max(level.chance, *before)
    return {f"{task.name.replace('-', '_')}_{name}": value for name, value in figures.items()}


def main() -> None:
    tuned = {name: task for name, task in known().items() if not task.is_pretraining}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="*", choices=tuple(tuned), default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/offline_tasks"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    chosen = {recipe: rate_of(recipe, given.runs) for recipe in RECIPES}
    rows = [trial for _, trials in chosen.values() for trial in trials]
    figures |= {f"{recipe}_learning_rate": rate for recipe, (rate, _) in chosen.items()}
    for name in given.task or tuned:
        found = []
        for recipe in RECIPES:
            for seed in SEEDS:
                found.append(trained(tuned[name], recipe, chosen[recipe][0], seed, given.runs))
                print(found[-1], flush=True)
        figures |= summary(tuned[name], found)
        rows += found
    if given.task is None:
        write(__file__, figures, rows)


if __name__ == "__main__":
    main()

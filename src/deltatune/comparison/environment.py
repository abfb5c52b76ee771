"""Where a figure was measured: versions, machine, command."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment"]

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "trl")


def environment() -> dict[str, Any]:
    """Return what a reader needs to judge or repeat a measurement, without names of machines."""
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    is_cuda = accelerator is not None and accelerator.type == "cuda"
    return {
        "deltatune": _version("deltatune"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if is_cuda else str(accelerator or "cpu"),
        "command": _command(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _command() -> str:
    # The home folder bears the user's name, and nothing depends on it.
    home = str(Path.home())
    arguments = [argument.replace(home, "~") for argument in sys.argv[1:]]
    return shlex.join([Path(sys.argv[0]).name, *arguments])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

"""A fine-tuned model is its base plus a delta: fine-tuning methods as parts that compose.

Importing the package makes peft able to load adapters of the type `DELTA`; everything else is
imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deltatune.bridges.peft_type import register

if TYPE_CHECKING:
    from deltatune.comparison.comparing import Comparison, compare
    from deltatune.exporting import export, load
    from deltatune.recipe import InPlace, Recipe
    from deltatune.run import Run, finetune
    from deltatune.settings import Optimizer, Training
    from deltatune.spectrum_report import write_spectrum_report
    from deltatune.weight_delta import WeightDelta

__version__ = "0.1.0"
__all__ = [
    "InPlace",
    "Optimizer",
    "Recipe",
    "Run",
    "Training",
    "Comparison",
    "WeightDelta",
    "compare",
    "export",
    "finetune",
    "load",
    "write_spectrum_report",
]

_HOMES = {
    "Comparison": "comparison.comparing",
    "compare": "comparison.comparing",
    "InPlace": "recipe",
    "Optimizer": "settings",
    "Recipe": "recipe",
    "Run": "run",
    "Training": "settings",
    "WeightDelta": "weight_delta",
    "export": "exporting",
    "finetune": "run",
    "load": "exporting",
    "write_spectrum_report": "spectrum_report",
}

register()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deltatune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deltatune.{_HOMES[name]}"), name)

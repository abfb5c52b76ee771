"""What every test may use: one thread, and the builder of tiny models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)

from tests import models  # noqa: E402 - found only through the path set above


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    """The builder `tiny(name, task="base", *, seed=0, attention=None, **overrides)`."""
    return models.tiny

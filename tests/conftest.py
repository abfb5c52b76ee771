"""What every test may use: one thread, and the builder of tiny models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)

from deltatune import cli  # noqa: E402 - after the number of threads
from tests import folders, models, offline  # noqa: E402 - found only through the path set above


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    """The builder `tiny(name, task="base", *, seed=0, attention=None, **overrides)`."""
    return models.tiny


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder with a tiny random Llama."""
    return folders.model_folder(tmp_path / "llama")


@pytest.fixture
def nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny random Llama as the only packaged base, with `deltatune/echo` as the only task."""
    return offline.packaged(tmp_path, monkeypatch)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file with 25 prompts and completions."""
    return folders.rows_file(tmp_path / "pairs.jsonl", folders.completions(25))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Run a command line; return exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["deltatune", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run

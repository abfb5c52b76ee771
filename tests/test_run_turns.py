"""A whole run from a recipe file whose parts take turns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from deltatune.bridges.progress import Progress
from deltatune.errors import InputError
from deltatune.run import finetune
from tests.folders import completions, model_folder, rows_file
from tests.runs import SETTINGS, adapter_of, losses_of

RECIPE = """
delta: {{kind: low_rank, rank: 2}}
update:
  kind: chain
  updates:
  - {{kind: ratios, roles: {{value: 4}}}}
  - kind: alternate
    phases:
    - {{parts: [up], steps: 2}}
    - {{parts: [{second}], steps: 1, learning_rate: 2, weight_decay: 0, clipped_apart: true}}
    until: {until}
    then: [up]
optimizer: {{weight_decay: 0.1}}
"""


def run(folder: Path, *, until: float = 0.75, second: str = "down", **options: Any) -> Any:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(until=until, second=second))
    shown = io.StringIO()
    made = finetune(
        model_folder(folder / "llama"),
        rows_file(folder / "rows.jsonl", completions(25)),
        recipe,
        assignments=SETTINGS,
        console=Console(file=shown, width=300),
        **options,
    )
    return made, shown.getvalue()


def test_run_stopped_between_two_turns_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shown = run(tmp_path, output=tmp_path / "whole")
    assert "train in none of" not in shown

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:  # the turn of down has just begun
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "on_substep_end", stop, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, output=tmp_path / "run")
    monkeypatch.undo()
    again, _ = run(tmp_path, output=tmp_path / "run", resume=True)
    wanted, given = adapter_of(whole.folder), adapter_of(again.folder)
    assert wanted.keys() == given.keys()
    assert all(torch.equal(wanted[name], given[name]) for name in wanted)
    assert losses_of(whole.folder) == losses_of(again.folder)


def test_run_too_short_for_a_turn_says_so_and_is_a_run_without_it(tmp_path: Path) -> None:
    # 8 steps: a quarter of them is 2, the turn of up alone.
    made, shown = run(tmp_path, until=0.25, output=tmp_path / "run")
    assert "down of the delta train in none of the 8 steps of this run" in " ".join(shown.split())
    never, _ = run(tmp_path, until=0.0, output=tmp_path / "never")
    one, other = adapter_of(made.folder), adapter_of(never.folder)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_run_with_a_part_that_the_delta_lacks_fails_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"part 'location' reaches no .* parts down, up"):
        run(tmp_path, second="location", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()

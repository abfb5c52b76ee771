"""Every flag of every command reaches the work, and a misspelt one is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from deltatune.cli import app

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
Command = Callable[..., tuple[Any, str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag as a user gives it, and what it must change.

    Args:
        given: the words on the command line.
        seen: in the call of the work, or in what is printed (`stdout`).
    """

    given: tuple[str, ...]
    seen: str


BASE: dict[str, tuple[str, ...]] = {
    "train": ("--model", "m", "--data", "d", "--output", "o"),
    "compare": (
        *("--model", "m", "--data", "d", "--output", "o"),
        *("--recipes", "lora", "--budget", "tokens=1"),
    ),
    "export": ("run", "--to", "peft"),
    "demo": (),
    "recipes": (),
    "tasks": (),
    "bases": (),
    "schema": (),
}
FLAGS: dict[str, Flag] = {
    "train.model": Flag(given=("--model", "other"), seen="model"),
    "train.data": Flag(given=("--data", "other"), seen="data"),
    "train.output": Flag(given=("--output", "other"), seen="output"),
    "train.recipe": Flag(given=("--recipe", "lora"), seen="recipe"),
    "train.assignments": Flag(given=("--set", "training.epochs=1"), seen="assignments"),
    "train.column": Flag(given=("--column", "text=line"), seen="columns"),
    "train.metric": Flag(given=("--metric", "exact_match"), seen="metric"),
    "train.task": Flag(given=("--task", "text"), seen="task"),
    "train.resume": Flag(given=("--resume",), seen="resume"),
    "train.allow_remote_code": Flag(given=("--allow-remote-code",), seen="allow_remote_code"),
    "train.as_json": Flag(given=("--json",), seen="stdout"),
    "compare.model": Flag(given=("--model", "other"), seen="model"),
    "compare.data": Flag(given=("--data", "other"), seen="data"),
    "compare.recipes": Flag(given=("--recipes", "lora,full"), seen="recipe"),
    "compare.budget": Flag(given=("--budget", "minutes=1"), seen="budget"),
    "compare.output": Flag(given=("--output", "other"), seen="output"),
    "compare.seeds": Flag(given=("--seeds", "5"), seen="seeds"),
    "compare.trials": Flag(given=("--trials", "5"), seen="trials"),
    "compare.sweep": Flag(given=("--sweep", "delta.rank=1,2"), seen="sweep"),
    "compare.assignments": Flag(given=("--set", "training.batch_size=1"), seen="assignments"),
    "compare.column": Flag(given=("--column", "text=line"), seen="columns"),
    "compare.task": Flag(given=("--task", "text"), seen="task"),
    "compare.metric": Flag(given=("--metric", "exact_match"), seen="metric"),
    "compare.forgetting": Flag(given=("--forgetting", "other"), seen="forgetting"),
    "compare.grid_intensity": Flag(given=("--grid-intensity", "0.4"), seen="grid_intensity"),
    "compare.engine": Flag(given=("--engine", "ray"), seen="engine"),
    "compare.address": Flag(given=("--address", "auto"), seen="address"),
    "compare.dry_run": Flag(given=("--dry-run",), seen="dry_run"),
    "compare.allow_remote_code": Flag(given=("--allow-remote-code",), seen="allow_remote_code"),
    "compare.as_json": Flag(given=("--json",), seen="stdout"),
    "export.folder": Flag(given=("other",), seen="folder"),
    "export.to": Flag(given=("--to", "lora"), seen="to"),
    "export.output": Flag(given=("--output", "other"), seen="output"),
    "export.tolerance": Flag(given=("--tolerance", "0.5"), seen="tolerance"),
    "export.as_json": Flag(given=("--json",), seen="stdout"),
    "demo.output": Flag(given=("--output", "other"), seen="folder"),
    "demo.as_json": Flag(given=("--json",), seen="stdout"),
    "recipes.name": Flag(given=("lora",), seen="stdout"),
    "recipes.as_json": Flag(given=("--json",), seen="stdout"),
    "tasks.name": Flag(given=("boxes",), seen="stdout"),
    "tasks.as_json": Flag(given=("--json",), seen="stdout"),
    "bases.as_json": Flag(given=("--json",), seen="stdout"),
}


@pytest.fixture
def call(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run a command whose work is only noted; return what it was given and what was printed."""
    noted: dict[str, Any] = {}

    def finetune(model: Any, data: Any, recipe: Any, **options: Any) -> Any:
        noted.update(model=model, data=data, recipe=recipe, **options)
        return SimpleNamespace(folder=Path("o"), before={}, after={}, costs={})

    def compare(model: Any, data: Any, recipe: Any, **options: Any) -> Any:
        noted.update(model=model, data=data, recipe=recipe, **options)
        return SimpleNamespace(record={})

    def export(folder: Any, to: Any, **options: Any) -> Any:
        noted.update(folder=folder, to=to, **options)
        return SimpleNamespace(to_dict=dict, line=lambda: "done")

    def demo(folder: Any) -> dict[str, Any]:
        noted.update(folder=folder)
        return {}

    monkeypatch.setattr("deltatune.run.finetune", finetune)
    monkeypatch.setattr("deltatune.comparison.comparing.compare", compare)
    monkeypatch.setattr("deltatune.exporting.export", export)
    monkeypatch.setattr("deltatune.demonstration.run", demo)

    def run(*words: str) -> dict[str, Any]:
        noted.clear()
        code, printed, error = command(*words)
        assert code == 0, error
        return {**noted, "stdout": printed}

    return run


def arguments(name: str, given: tuple[str, ...]) -> list[str]:
    """Put a flag into the base's words; a positional word replaces the first."""
    base = list(BASE[name])
    if given[0].startswith("--"):
        if given[0] in base:
            start = base.index(given[0])
            del base[start : start + 2]
        return [name, *base, *given]
    return [name, *given, *base[1:]]


@pytest.mark.parametrize("name", FLAGS)
def test_flag_changes_what_the_command_does(name: str, call: Callable[..., dict[str, Any]]) -> None:
    command_name, flag = name.split(".")[0], FLAGS[name]
    plain = call(command_name, *BASE[command_name])
    changed = call(*arguments(command_name, flag.given))
    differing = {key for key in plain | changed if plain.get(key) != changed.get(key)}
    assert differing == {flag.seen}


def test_every_flag_has_a_row() -> None:
    found = {
        f"{name}.{parameter.name}"
        for name, command in COMMANDS.items()
        for parameter in command.params
        if parameter.name != "help"
    }
    assert FLAGS.keys() == found, "give each new flag a row that proves its effect"


@pytest.mark.parametrize("name", [n for n in FLAGS if FLAGS[n].given[0].startswith("--")])
def test_misspelt_flag_is_refused(name: str, command: Command) -> None:
    command_name, flag = name.split(".")[0], FLAGS[name].given[0]
    code, _, error = command(command_name, *BASE[command_name], f"{flag}x")
    assert code == 2
    assert f"{flag}x" in error
    assert flag in error.replace(f"{flag}x", "")  # the right one is named

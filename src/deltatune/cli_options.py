"""The options of the command line, each defined once, and how their texts are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from deltatune.errors import InputError

__all__ = [
    "Address",
    "AsJson",
    "Assignments",
    "BudgetText",
    "Columns",
    "Data",
    "DryRun",
    "EngineName",
    "Forgetting",
    "GridIntensity",
    "Metric",
    "Model",
    "Output",
    "RecipeName",
    "Recipes",
    "RemoteCode",
    "Seeds",
    "Sweeps",
    "Task",
    "Trials",
    "pairs",
    "show_json",
    "swept",
    "values",
]

Model = Annotated[
    str, typer.Option(help="Folder, Hugging Face name, package:NAME, or deltatune/BASE.")
]
Data = Annotated[str, typer.Option(help="File, folder, Hugging Face name, or deltatune/TASK.")]
RecipeName = Annotated[str, typer.Option(help="A name of 'deltatune recipes', or a YAML file.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Replace one field of the recipe; repeat at will."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="ROLE=NAME", help="Which column plays a role; guessed otherwise."
    ),
]
Task = Annotated[str | None, typer.Option(help="Task of the data; guessed otherwise.")]
Metric = Annotated[
    str,
    typer.Option(
        help="For prompts and completions: loss, exact_match or final_number of generated answers; "
        "the task's own otherwise.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option(help="Folder to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
RemoteCode = Annotated[
    bool, typer.Option("--allow-remote-code", help="Run code that comes with the model.")
]
Recipes = Annotated[
    str,
    typer.Option(
        help="Names of 'deltatune recipes' or YAML files, with commas between: "
        "full,lora,mine=my.yaml,small=lora:delta.rank=2.",
        metavar="A,B,...",
    ),
]
BudgetText = Annotated[
    str,
    typer.Option(
        help="Training of each recipe, its trials included: tokens=2e6, minutes=30 or flops=1e15.",
        metavar="KIND=AMOUNT",
    ),
]
Seeds = Annotated[int, typer.Option(help="Final runs of each recipe, with seeds 0, 1, ...")]
Trials = Annotated[int, typer.Option(help="Learning rates to try for each; 1 takes its own.")]
Sweeps = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="FIELD=A,B,...",
        help="A grid of runs of one recipe instead; give it once or twice.",
    ),
]
Forgetting = Annotated[
    str,
    typer.Option(
        help="Data of what the base could do before; of a packaged base its own otherwise.",
        show_default=False,
    ),
]
GridIntensity = Annotated[
    float | None, typer.Option(help="Kilograms of CO2e for a kilowatt-hour where this runs.")
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help="What carries out the runs: local, one by one, or ray, on a cluster."
    ),
]
Address = Annotated[
    str,
    typer.Option(
        help="Ray cluster, HOST:PORT or auto; --engine ray starts one here otherwise.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Take `NAME=VALUE` apart, one for each time that an option is given.

    Raises:
        InputError: one without an equals sign.
    """
    found = {}
    for item in given or []:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise InputError(f"{option} {item!r} has no '=': write {option} NAME=VALUE")
        found[key.strip()] = value.strip()
    return found


def values(given: list[str] | None) -> dict[str, Any]:
    """Read the values of `--set` as YAML does.

    Raises:
        InputError: one that YAML cannot read.
    """
    try:
        return {key: yaml.safe_load(value) for key, value in pairs(given, "--set").items()}
    except yaml.YAMLError as error:
        raise InputError(
            f"--set has a value that is not readable: {' '.join(str(error).split())}"
        ) from error


def show_json(value: Any) -> None:
    """Print one JSON object for machines."""
    print(json.dumps(value, indent=2, default=str))


def swept(given: list[str] | None) -> dict[str, list[Any]]:
    """Read `--sweep FIELD=a,b,c`.

    Raises:
        InputError: no equals sign, one field twice, or a value that YAML cannot read.
    """
    texts = pairs(given, "--sweep")
    if len(texts) < len(given or []):
        raise InputError("--sweep has one field twice: give all its values at once, FIELD=A,B,...")
    try:
        return {
            field: [_number(yaml.safe_load(value)) for value in text.split(",") if value.strip()]
            for field, text in texts.items()
        }
    except yaml.YAMLError as error:
        raise InputError(
            f"--sweep has a value that is not readable: {' '.join(str(error).split())}"
        ) from error


def _number(value: Any) -> Any:
    """Return the number that YAML takes for a word, since it wants a point in `1e-3`."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value

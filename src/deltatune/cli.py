"""The command line: every verb ends with exit code 0, 1 (the work failed) or 2 (bad input)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deltatune import __version__
from deltatune.cli_options import (
    Address,
    AsJson,
    Assignments,
    BudgetText,
    Columns,
    Data,
    DryRun,
    EngineName,
    Forgetting,
    GridIntensity,
    Metric,
    Model,
    Output,
    RecipeName,
    Recipes,
    RemoteCode,
    Seeds,
    Sweeps,
    Task,
    Trials,
    pairs,
    show_json,
    swept,
    values,
)
from deltatune.errors import DeltatuneError

__all__ = ["app", "main"]

INTERRUPTED = 130  # what typer makes of Ctrl-C, without a word

app = typer.Typer(
    name="deltatune",
    help="Fine-tune models by parts that compose: a fine-tuned model is its base plus a delta.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def train(
    model: Model,
    data: Data,
    output: Output,
    recipe: RecipeName = "efficientft",
    assignments: Assignments = None,
    column: Columns = None,
    task: Task = None,
    metric: Metric = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    allow_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on data and write the run to a folder."""
    from deltatune.run import finetune

    run = finetune(
        model,
        data,
        recipe,
        output=output,
        assignments=values(assignments),
        columns=pairs(column, "--column") or None,
        task=task,
        metric=metric,
        resume=resume,
        allow_remote_code=allow_remote_code,
    )
    if as_json:
        show_json(
            {
                "folder": str(run.folder),
                "before": dict(run.before),
                "after": dict(run.after),
                "costs": dict(run.costs),
            }
        )


@app.command()
def compare(
    model: Model,
    data: Data,
    recipes: Recipes,
    budget: BudgetText,
    output: Output,
    seeds: Seeds = 3,
    trials: Trials = 3,
    sweep: Sweeps = None,
    assignments: Assignments = None,
    column: Columns = None,
    task: Task = None,
    metric: Metric = "",
    forgetting: Forgetting = "",
    grid_intensity: GridIntensity = None,
    engine: EngineName = "local",
    address: Address = "",
    dry_run: DryRun = False,
    allow_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare recipes at an equal budget; called again on the same folder, it goes on."""
    from deltatune.comparison import comparing

    made = comparing.compare(
        model,
        data,
        recipes,
        budget=budget,
        output=output,
        seeds=seeds,
        trials=trials,
        sweep=swept(sweep),
        assignments=values(assignments),
        columns=pairs(column, "--column") or None,
        task=task,
        metric=metric,
        forgetting=forgetting,
        grid_intensity=grid_intensity,
        engine=engine,
        address=address,
        dry_run=dry_run,
        allow_remote_code=allow_remote_code,
    )
    if as_json:
        show_json(dict(made.record))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe to show whole.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the catalogue, or show one recipe: its parts, what trains, its source."""
    from deltatune import catalogue

    if as_json:
        show_json(catalogue.one(name) if name else catalogue.everything())
        return
    console = Console()
    console.print(catalogue.page(name) if name else catalogue.table())
    if not name:
        from deltatune import offline_catalogue

        console.print(offline_catalogue.names(), soft_wrap=True)


@app.command()
def tasks(
    name: Annotated[
        str | None, typer.Argument(help="One task to show, such as boxes:difficulty=3.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks that need no network, or show one: its levels and three examples."""
    from deltatune import offline_catalogue

    if as_json:
        show_json(offline_catalogue.task(name) if name else offline_catalogue.tasks())
        return
    shown = offline_catalogue.task_page(name) if name else offline_catalogue.tasks_table()
    Console().print(shown, crop=False)


@app.command()
def bases(as_json: AsJson = False) -> None:
    """List the pre-trained models that come with the package."""
    from deltatune import offline_catalogue

    if as_json:
        show_json(offline_catalogue.bases())
    else:
        Console().print(offline_catalogue.bases_table())


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    to: Annotated[str, typer.Option(help="merged, peft or lora.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; RUN/export-KIND otherwise.")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Largest allowed difference of logits, relative to the largest logit."),
    ] = 1e-4,
    as_json: AsJson = False,
) -> None:
    """Write the trained model for other tools, reload it, and compare it with what was trained."""
    from deltatune import exporting

    result = exporting.export(folder, to, output=output, tolerance=tolerance)
    if as_json:
        show_json(result.to_dict())
    else:
        Console(stderr=True).print(result.line(), highlight=False, soft_wrap=True)


@app.command()
def demo(
    output: Output = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Train the default recipe on a base and a task that come with the package."""
    from deltatune import demonstration

    result = demonstration.run(output)
    if as_json:
        show_json(result)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe file."""
    from deltatune.recipe import json_schema

    show_json(json_schema())


def _version(wanted: bool) -> None:
    if wanted:
        print(f"deltatune {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; errors of ours are one line on standard error."""
    try:
        app()
    except DeltatuneError as error:
        print(f"deltatune: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # of a path that was given; writing a run says more itself
        print(f"deltatune: {error.strerror or error}: {error.filename!r}", file=sys.stderr)
        raise SystemExit(1) from None
    except (KeyboardInterrupt, SystemExit) as stopped:
        if isinstance(stopped, SystemExit) and stopped.code != INTERRUPTED:
            raise
        print(
            "deltatune: interrupted; what was saved is kept: train goes on with --resume, compare "
            "when it is called again as it was",
            file=sys.stderr,
        )
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

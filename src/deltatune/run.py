"""The main job: from a recipe, a model and data to a run on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from safetensors import SafetensorError

from deltatune import planning, run_report, run_scores
from deltatune.adapter_record import AdapterRecord
from deltatune.bridges import progress, session
from deltatune.bridges.quiet import quiet
from deltatune.comparison.environment import environment
from deltatune.comparison.evaluation import Evaluation
from deltatune.errors import Diverged, InputError, OutOfMemory, WorkError
from deltatune.files import (
    replace_folder_atomically,
    write_json_atomically,
    write_text_atomically,
)
from deltatune.plan import Plan
from deltatune.recipe import Recipe, read
from deltatune.request import Request
from deltatune.run_folder import RunFolder

__all__ = ["Run", "finetune"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Args:
        folder: where everything lies.
        before: metrics of the base.
        after: metrics of the tuned model.
        costs: the content of `costs.json`.
    """

    folder: Path
    before: Mapping[str, float]
    after: Mapping[str, float]
    costs: Mapping[str, Any]


@quiet()
def finetune(
    model: str | Path,
    data: Any,
    recipe: str | Path | Recipe = "efficientft",
    *,
    output: str | Path,
    assignments: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    resume: bool = False,
    allow_remote_code: bool = False,
    scored_on: str = "",
    metric: str = "",
    console: Console | None = None,
    before: Mapping[str, Any] | None = None,
) -> Run:
    """Fine-tune a model on data by a recipe, and write everything that matters to a folder.

    Args:
        model: folder, Hugging Face name, `package:NAME` or `deltatune/NAME`.
        data: file, folder, Hugging Face name, `deltatune/NAME`, `datasets` object or list of rows.
        recipe: a recipe, a name of the catalogue, or the path of a YAML file.
        output: folder of the run; must not hold a finished one.
        assignments: dotted field or parameter of the recipe -> value, as `--set` gives them.
        columns: column role (`text`, `label`, `prompt`, ...) -> column name; guessed if not given.
        task: task of the data; guessed if not given.
        resume: go on with an unfinished run, bit for bit as if it had not stopped.
        allow_remote_code: whether code that comes with the model may run.
        scored_on: `validation` to choose settings by; the test split if not given and there is one.
        metric: for data of prompts and completions `loss`, or `exact_match` or `final_number` of
            answers that are generated to the first 200 examples; if not given, what an offline
            task measures, and the loss of other data.
        console: where to show progress; the terminal's standard error if not given.
        before: scores of the untrained model on the same part, as an earlier run of the same seed
            has them in `evaluation.json`; measured if not given.

    Returns:
        The finished run.

    Raises:
        InputError: anything wrong with the inputs, before training starts.
        WorkError: training diverged, stopped, or could not be saved.
    """
    console = console or Console(stderr=True)
    chosen = (
        recipe.with_fields(assignments or {})
        if isinstance(recipe, Recipe)
        else read(recipe, assignments)
    )
    folder = RunFolder(Path(output))
    if folder.path.exists() or resume:
        folder.open(resume=resume)
    request = Request(
        model=model,
        data=data,
        columns=columns,
        task=task,
        allow_remote_code=allow_remote_code,
        scored_on=scored_on,
        metric=metric,
    )
    plan = planning.plan(request, chosen, console)
    if resume:
        folder.check_base(plan.base_record)
        folder.check_same(chosen, plan.inputs)
    else:
        folder.open(resume=False)
    return _work(plan, folder, before, resume=resume, console=console)


def _work(
    plan: Plan,
    folder: RunFolder,
    before: Mapping[str, Any] | None,
    *,
    resume: bool,
    console: Console,
) -> Run:
    """Begin or go on; bad input that shows only now leaves nothing behind of a fresh run."""
    try:
        if not resume:
            _check_room(folder.path, plan)
            folder.begin(plan.recipe, {"inputs": plan.inputs, **environment()}, plan.base_record)
        scores = run_scores.before(plan, folder, before)
        return _train(plan, folder, scores, resume=resume, console=console)
    except InputError:
        if not resume:
            folder.discard_if_untrained()
        raise
    except torch.OutOfMemoryError as error:
        training = plan.recipe.training
        raise OutOfMemory(
            f"the device ran out of memory at training.batch_size={training.batch_size} "
            f"and max_length={training.max_length}: halve the batch size and double "
            f"training.accumulation, in another output folder"
        ) from error
    except (OSError, SafetensorError) as error:
        raise WorkError(
            f"writing to {str(folder.path)!r} failed: {getattr(error, 'strerror', None) or error}; "
            f"make room and go on with --resume"
        ) from error


def _train(
    plan: Plan,
    folder: RunFolder,
    before: Mapping[str, Any],
    *,
    resume: bool,
    console: Console,
) -> Run:
    checkpoint = session.latest(folder.checkpoints) if resume else None
    if resume and checkpoint is None:
        console.print("note: no checkpoint is complete yet: training starts at the first step")
    folder.keep_metrics_until(session.step_of(checkpoint))
    plan.meter.continue_from(folder.read_metrics())
    watch = progress.Progress(console, folder.metrics, plan.meter)
    trainer = session.session(
        plan.model,
        plan.encoded.splits["train"],
        plan.collate,
        plan.recipe,
        plan.sites,
        objective=plan.objective,
        folder=folder.checkpoints,
        meter=plan.meter,
        trains_base=plan.trains_base,
        constant_loss=plan.constant_loss,
        callbacks=[watch],
    )
    for note in cast("Any", trainer).notes:
        console.print(note, highlight=False, markup=False)
    with watch, plan.meter:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    after = run_scores.after(plan)
    optimizer = cast("torch.optim.Optimizer", trainer.optimizer)
    costs = {**plan.meter.to_dict(), **plan.costs(optimizer, steps=trainer.state.max_steps)}
    costs |= plan.carrier.figures(plan.model, plan.sites)
    _save(plan, folder)
    costs["adapter_bytes"] = _bytes(folder.adapter)
    return _finish(plan, folder, before, after, costs, console)


def _save(plan: Plan, folder: RunFolder) -> None:
    """Write the trained delta; a run that was killed while writing the rest finds it there."""
    with replace_folder_atomically(folder.adapter) as temporary:
        plan.carrier.save(plan.model, temporary, plan.reload_base)
        AdapterRecord.of(temporary, plan.base_record).save(temporary)


def _finish(
    plan: Plan,
    folder: RunFolder,
    before: Mapping[str, Any],
    after: Evaluation,
    costs: dict[str, Any],
    console: Console,
) -> Run:
    """Write what is left, the evaluation last; a collapse is written like any result, then said."""
    write_json_atomically(folder.costs, costs)
    collapse = run_scores.collapse(plan, costs["optimizer_steps"], after)
    result = {"before": dict(before), "after": after.to_dict(), "collapse": collapse}
    summary = run_report.summary(plan, result, costs, folder)
    write_text_atomically(folder.report, run_report.page(plan, result, costs, folder))
    write_json_atomically(folder.evaluation, result)
    folder.remove_checkpoints()
    console.print(summary, crop=False)
    if collapse:
        raise Diverged(collapse)
    return Run(folder=folder.path, before=before["metrics"], after=after.metrics, costs=costs)


def _bytes(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())


def _check_room(folder: Path, plan: Plan) -> None:
    """Refuse to start when what must be written cannot fit.

    A checkpoint holds every trained value with its two moments and, as transformers writes it, the
    model of an in-place run or the adapter. Two are kept, a third is there while it is written, and
    the result comes beside them.
    """
    trained = 4 * plan.trainable_parameters
    tensors = list(plan.model.parameters()) if plan.trains_base else []
    model = sum(tensor.numel() * tensor.element_size() for tensor in tensors) or trained
    needed = 3 * (3 * trained + model) + trained + 2**20
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"output {str(folder)!r} has {free / 2**20:.0f} MiB free, and the run writes about "
            f"{needed / 2**20:.0f} MiB: make room or give another output folder"
        )

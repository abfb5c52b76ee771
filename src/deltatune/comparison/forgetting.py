"""How much worse a tuned model does what its base could."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from torch import nn

from deltatune import exporting, planning
from deltatune.base import Base, load_base
from deltatune.bridges.bodies import with_body_of, with_other_head
from deltatune.comparison.data_parts import with_label_names
from deltatune.comparison.evaluation import evaluate
from deltatune.data.loading import Examples, load
from deltatune.data.offline import known_tasks
from deltatune.data.tasks import TASKS
from deltatune.errors import NotComposable
from deltatune.files import replace_folder_atomically
from deltatune.inputs import inputs_of
from deltatune.model_places import locate
from deltatune.run_folder import RunFolder
from deltatune.settings import Training

__all__ = ["Forgetting", "forgetting", "held_out_data"]

LENGTH = 512  # tokens; of every recipe alike, whatever length it trained with
BATCH_SIZE = 8
UNITS = {
    "tokens": "nats per token",
    "class": "nats per example",
    "number": "squared error per example",
}


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What tuning took from the base on data that the base could do.

    Args:
        data: name of the data; empty where there is none.
        items: blocks of tokens, texts or images that were scored.
        unit: of the losses.
        base_loss: of the base; None where nothing could be measured.
        tuned_loss: of the tuned model; None where nothing could be measured.
        reason: why nothing could be measured, in one line; empty where it was.
    """

    data: str = ""
    items: int = 0
    unit: str = ""
    base_loss: float | None = None
    tuned_loss: float | None = None
    reason: str = ""

    @property
    def rise(self) -> float | None:
        """The tuned model's loss less the base's: above 0 the model forgot."""
        if self.base_loss is None or self.tuned_loss is None:
            return None
        return self.tuned_loss - self.base_loss


def forgetting(
    run: str | Path, data: Any = None, at_most: int = 64, base_loss: float | None = None
) -> Forgetting:
    """Measure how the loss on data that a base could do rose by tuning.

    Base and tuned model are scored in float32 on the same examples of a part that is not for
    training. A run with a head of its own is scored with the base's own head on its tuned body:
    the head that the task drew knows nothing of the data.

    Args:
        run: folder of a finished run.
        data: anything `deltatune.data.loading.load` takes; if not given, what the packaged base was
            pre-trained on.
        at_most: only the first so many examples (of plain text: blocks of 512 tokens).
        base_loss: of the same base on the same examples, where another run has it; measured if not
            given.

    Returns:
        The losses, or the reason why there are none.

    Raises:
        InputError: no finished run, or data that cannot be read.
    """
    inputs: Mapping[str, Any] = RunFolder(Path(run)).read(RunFolder(Path(run)).environment)[
        "inputs"
    ]
    source = _own_data(inputs["model"]) if data is None else data
    if source is None:
        return Forgetting(
            reason=f"nothing is known that {inputs['model']} could do before: give data for it"
        )
    examples = _held_out(load(source))
    base = load_base(
        inputs["model"],
        task=examples.task,
        label_names=examples.label_names,
        allow_remote_code=inputs["allow_remote_code"],
    )
    if base.new_weights:
        return Forgetting(
            data=examples.source,
            reason=f"{inputs['model']} has no trained head for {examples.source}: it could not do "
            f"that before",
        )
    return _measured(run, base, examples, inputs, at_most, base_loss)


def held_out_data(model: str | Path, data: Any, folder: Path) -> str:
    """Write the examples that forgetting is measured on, once for many runs.

    To make them may take longer than to score them: a packaged base's come from the whole library.

    Args:
        model: as for `finetune`.
        data: as for `forgetting`; None takes the packaged base's own.
        folder: where to write, in the format of `datasets`; taken as it is where it is there.

    Returns:
        What to give to `forgetting`; empty where nothing is known that the model could do.

    Raises:
        InputError: data that cannot be read.
    """
    source = _own_data(str(model)) if data is None else data
    if source is None:
        return ""
    if not folder.is_dir():
        examples = _held_out(load(source))
        rows = with_label_names(examples.splits["train"], examples)
        with replace_folder_atomically(folder) as temporary:
            # A training part must be there, and would be divided if it were the only one.
            datasets.DatasetDict(train=rows, test=rows).save_to_disk(temporary)
    return str(folder)


def _own_data(model: str) -> str | None:
    """Return the name of what a packaged base was pre-trained on."""
    for task in known_tasks.known().values():
        if task.is_pretraining and locate(task.base) == locate(model):
            return known_tasks.OWNER + task.name
    return None


def _held_out(examples: Examples) -> Examples:
    """Return the examples with no part but the one to score, in the place that is encoded."""
    split = next(name for name in ("test", "validation", "train") if name in examples.splits)
    return dataclasses.replace(examples, splits={"train": examples.splits[split]})


def _measured(
    run: str | Path,
    base: Base,
    examples: Examples,
    inputs: Mapping[str, Any],
    at_most: int,
    base_loss: float | None,
) -> Forgetting:
    quiet = Console(file=io.StringIO())
    encoded, collate = inputs_of(examples, base, Training(max_length=LENGTH), quiet)

    def loss(model: nn.Module) -> float:
        scores = evaluate(
            nn.Module.to(model, planning.device()),
            encoded.splits["train"],
            collate,
            task=examples.task,
            split="held-out",
            batch_size=BATCH_SIZE,
            at_most=at_most,
        )
        parts = sum(int(item.get("tokens", 1)) for item in scores.items)
        return sum(float(item["loss"]) for item in scores.items) / parts

    found = Forgetting(
        data=examples.source,
        items=min(at_most, len(encoded.splits["train"])),
        unit=UNITS[TASKS[examples.task].answers],
    )
    if base_loss is None:
        base_loss = loss(base.model)
    try:
        tuned = _doing(exporting.load(run), base.model, examples, inputs)
    except NotComposable as error:
        return dataclasses.replace(found, reason=str(error))
    return dataclasses.replace(found, base_loss=base_loss, tuned_loss=loss(tuned))


def _doing(
    tuned: nn.Module, base: nn.Module, examples: Examples, inputs: Mapping[str, Any]
) -> nn.Module:
    """Return the tuned model so that it does the base's task again; either may be changed."""
    answers, before = TASKS[examples.task].answers, TASKS[inputs["task"]].answers
    if answers != before:
        return with_body_of(base, tuned)
    has_same_head = list(examples.label_names) == list(inputs["label_names"])
    return tuned if has_same_head else with_other_head(tuned, base)

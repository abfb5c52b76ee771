"""The base of a run: a model and its processor, from safetensors only, without remote code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from deltatune.base_record import BaseRecord, base_record
from deltatune.bridges.quantized import keep_trainable
from deltatune.bridges.quiet import quiet
from deltatune.data.tasks import TASKS
from deltatune.errors import InputError, unknown_name
from deltatune.fresh_heads import named_classes, redraw_head
from deltatune.guarded import guarded
from deltatune.model_places import locate
from deltatune.processors import Processor, load_processor
from deltatune.seeds import seed_for

__all__ = ["Base", "load_base", "locate", "without_dropout"]

_CLASSES: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "image_classification": AutoModelForImageClassification,
    "completion": AutoModelForCausalLM,
    "chat": AutoModelForCausalLM,
    "text": AutoModelForCausalLM,
}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A loaded base.

    Args:
        model: the model, in evaluation mode, every weight as stored (in the asked precision).
        processor: its own: a tokenizer, or an image processor for a model that reads images.
        name: what the user gave.
        record: tells this base from others, in whatever precision it was loaded.
        new_weights: names of parameters that the checkpoint does not hold (a fresh head).
    """

    model: PreTrainedModel
    processor: Processor
    name: str
    record: BaseRecord
    new_weights: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor of a base that reads text."""
        assert isinstance(self.processor, PreTrainedTokenizerBase), "the task reads text"
        return self.processor

    @property
    def fingerprint(self) -> str:
        """What the checkpoint holds, in one line; a fresh head is no part of it."""
        return self.record.leaving_out(self.new_weights).fingerprint


def load_base(
    name: str | Path,
    *,
    task: str,
    label_names: Sequence[str] = (),
    precision: str = "float32",
    allow_remote_code: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
) -> Base:
    """Load a model for a data task, and its tokenizer or image processor.

    A head that the checkpoint lacks, that has another number of classes or that names other classes
    is drawn from the seed.

    Args:
        name: folder, Hugging Face name, `package:NAME` or `deltatune/NAME`.
        task: a task of `deltatune.data`.
        label_names: of a classification.
        precision: `float32` or `bfloat16`.
        allow_remote_code: whether code that comes with the model may run.
        seed: a fresh head is drawn from it.
        device: where to put the model; the CPU if not given.

    Raises:
        InputError: anything that keeps the model from loading safely.
    """
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    place = locate(name)
    config = guarded(
        place, allow_remote_code, lambda **options: AutoConfig.from_pretrained(place, **options)
    )
    processor = load_processor(place, config, task, allow_remote_code)
    known = named_classes(config)
    _set_labels(config, task, label_names)
    model, new_weights = _load_weights(place, config, task, precision, allow_remote_code, seed)
    if not new_weights and TASKS[task].answers == "class" and known not in ((), tuple(label_names)):
        new_weights = redraw_head(model, len(label_names), seed)
    if isinstance(processor, PreTrainedTokenizerBase) and (
        getattr(model.config, "pad_token_id", None) is None
    ):
        model.config.pad_token_id = _pad_token_id(processor)
    record = base_record(model, str(name))
    if device is not None:
        nn.Module.to(model, device)
    return Base(
        model=model.eval(),
        processor=processor,
        name=str(name),
        record=record,
        new_weights=new_weights,
    )


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    identifier = tokenizer.pad_token_id
    return int(identifier) if identifier is not None else tokenizer.eos_token_id


def _set_labels(config: Any, task: str, label_names: Sequence[str]) -> None:
    if TASKS[task].answers == "number":
        config.num_labels, config.problem_type = 1, "regression"
    if TASKS[task].answers == "class":
        config.num_labels, config.problem_type = len(label_names), "single_label_classification"
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: i for i, label in enumerate(label_names)}


def _load_weights(
    place: str, config: Any, task: str, precision: str, allow_remote_code: bool, seed: int
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    # The load report of transformers is a table on stderr; what it says is in `new_weights`.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "head"))
            model, report = guarded(
                place,
                allow_remote_code,
                lambda **options: _CLASSES[task].from_pretrained(
                    place,
                    config=config,
                    dtype=getattr(torch, precision),
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=TASKS[task].has_fresh_head,
                    **options,
                ),
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = {str(key) for key in report["missing_keys"]}
    replaced = {str(key[0]) for key in report.get("mismatched_keys", ())}
    if not TASKS[task].has_fresh_head and missing:
        raise InputError(
            f"the checkpoint of {place!r} lacks {sorted(missing)[0]} and {len(missing) - 1} more, "
            f"which {type(model).__name__} needs: take a model that was trained to continue text, "
            f"or give data with a label column"
        )
    keep_trainable(model)
    return model, tuple(sorted(missing | replaced))


def without_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to nothing, in place.

    Many models have no module for it but keep its probability as a number, as Llama's attention
    keeps `attention_dropout`.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and name.endswith(("dropout", "dropout_prob", "dropout_p")):
                setattr(module, name, 0.0)

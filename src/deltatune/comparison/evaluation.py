"""Scores of a model on examples, item by item, so that comparisons can be paired."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltatune.blocks.block import reading
from deltatune.errors import InputError
from deltatune.training_mode import evaluating

__all__ = [
    "Evaluation",
    "evaluate",
    "inference",
    "is_constant_prediction",
    "label_entropy",
    "lower_is_better",
]

LOSSES = frozenset({"loss", "perplexity", "bits_per_byte", "mean_squared_error"})


def lower_is_better(metric: str) -> bool:
    """Tell of a metric's name whether a smaller number is the better one."""
    return metric in LOSSES


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scores on one split.

    Args:
        split: name of the split.
        items: one mapping per example, in the split's order (`loss`, and `prediction`, `label`,
            `correct`, `confidence` or `tokens` by task; `score`, `generated` and `confidence` too
            where answers are generated).
        metrics: name -> number; `headline` names the first to look at.
        headline: name of the metric that tables show.
        chance: the headline of the best guess that never reads the input; None if not known.
        ceiling: the headline of one who makes no mistake; None if not known.
    """

    split: str
    items: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, float]
    headline: str
    chance: float | None = None
    ceiling: float | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether of two headlines the larger one is the better."""
        return not lower_is_better(self.headline)

    def not_finite(self) -> dict[str, float]:
        """Return the metrics that are infinite or no number: such a model is broken."""
        return {name: value for name, value in self.metrics.items() if not math.isfinite(value)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {
            "split": self.split,
            "examples": len(self.items),
            "headline": self.headline,
            "higher_is_better": self.higher_is_better,
            "chance": self.chance,
            "ceiling": self.ceiling,
            "metrics": dict(self.metrics),
            "items": [dict(item) for item in self.items],
        }


def evaluate(
    model: nn.Module,
    examples: Any,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    *,
    task: str,
    split: str,
    batch_size: int,
    at_most: int = 0,
    autocast: bool = False,
) -> Evaluation:
    """Score a model on encoded examples.

    Examples are batched by length, so little is padded, and the scores are put back in order.

    Args:
        model: gives `logits`, `(batch, labels)` or `(batch, seq, vocab)`.
        examples: encoded rows with `input_ids` or `image`, and `labels`.
        collate: rows -> batch of tensors.
        task: a task of `deltatune.data`.
        split: name, for the record.
        batch_size: examples at a time.
        at_most: only the first so many examples; 0 takes all.
        autocast: whether to compute in bfloat16.

    Raises:
        InputError: there is no example.
    """
    number = min(len(examples), at_most) if at_most else len(examples)
    if number == 0:
        raise InputError(f"the {split} split is empty: give at least one example")
    lengths = [len(examples[i].get("input_ids", ())) for i in range(number)]  # 0 of an image
    order = sorted(range(number), key=lambda i: (lengths[i], i))
    score, summarize = _TASKS[task]
    items: list[Mapping[str, Any]] = [{}] * number
    with inference(model, autocast):
        device = next(model.parameters()).device
        for start in range(0, number, batch_size):
            chosen = order[start : start + batch_size]
            batch = {
                key: value.to(device)
                for key, value in collate([examples[i] for i in chosen]).items()
            }
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            labels = batch["labels"]
            with reading(model, batch):
                logits = model(**inputs).logits
            for i, item in zip(chosen, score(logits, labels), strict=True):
                items[i] = item
    metrics = summarize(items)
    return Evaluation(
        split=split, items=tuple(items), metrics=metrics, headline=next(iter(metrics))
    )


@contextlib.contextmanager
def inference(model: nn.Module, autocast: bool) -> Iterator[None]:
    """Run a model in a block as it is used: in evaluation mode, without gradients.

    Args:
        model: gets its mode back at the end.
        autocast: whether to compute in bfloat16.
    """
    device = next(model.parameters()).device.type
    with evaluating(model), torch.autocast(device, torch.bfloat16, enabled=autocast):
        yield


def _classification_items(logits: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    log_probabilities = F.log_softmax(logits.float(), dim=-1)  # (batch, labels)
    confidence, predicted = log_probabilities.max(dim=-1)  # (batch,), (batch,)
    losses = F.nll_loss(log_probabilities, labels, reduction="none")  # (batch,)
    rows = zip(
        labels.tolist(), predicted.tolist(), losses.tolist(), confidence.exp().tolist(), strict=True
    )
    return [
        {
            "label": label,
            "prediction": prediction,
            "correct": label == prediction,
            "loss": loss,
            "confidence": sure,
        }
        for label, prediction, loss, sure in rows
    ]


def _regression_items(logits: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    predicted = logits.float().reshape(-1)  # (batch,)
    wanted = labels.float().reshape(-1)  # (batch,)
    return [
        {"label": label, "prediction": prediction, "loss": (label - prediction) ** 2}
        for label, prediction in zip(wanted.tolist(), predicted.tolist(), strict=True)
    ]


def _token_items(logits: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    items = []
    for row, wanted in zip(
        logits[:, :-1], labels[:, 1:], strict=True
    ):  # (seq - 1, vocab), (seq - 1,)
        supervised = wanted != -100
        losses = F.cross_entropy(row[supervised].float(), wanted[supervised], reduction="sum")
        items.append({"loss": losses.item(), "tokens": int(supervised.sum())})
    return items


def _classification_metrics(items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    number = len(items)
    return {
        "accuracy": sum(item["correct"] for item in items) / number,
        "loss": sum(item["loss"] for item in items) / number,
        "macro_f1": _macro_f1(items),
        "majority_accuracy": max(_counts(items, "label").values()) / number,
        "predicted_classes": float(len(_counts(items, "prediction"))),
    }


def _counts(items: Sequence[Mapping[str, Any]], key: str) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for item in items:
        counts[item[key]] = counts.get(item[key], 0) + 1
    return counts


def _macro_f1(items: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean over the labels present of 2 hits / (predicted + present)."""
    present, predicted = _counts(items, "label"), _counts(items, "prediction")
    hits = _counts([item for item in items if item["correct"]], "label")
    scores = [
        2 * hits.get(label, 0) / (present[label] + predicted.get(label, 0)) for label in present
    ]
    return sum(scores) / len(scores)


def _regression_metrics(items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    pairs = torch.tensor(
        [[item["label"], item["prediction"]] for item in items], dtype=torch.float64
    )  # (items, 2)
    spread = pairs.std(dim=0, correction=0)  # (2,)
    defined = len(items) > 1 and bool((spread > 0).all())
    # A constant prediction has no correlation; 0 is what chance gives.
    pearson = float(torch.corrcoef(pairs.T)[0, 1]) if defined else 0.0
    return {
        "pearson": pearson,
        "mean_squared_error": sum(item["loss"] for item in items) / len(items),
    }


def _token_metrics(items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    tokens = sum(item["tokens"] for item in items)
    loss = sum(item["loss"] for item in items) / max(tokens, 1)
    # exp overflows a float near 709; such a model is no language model any more.
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "supervised_tokens": float(tokens),
    }


def is_constant_prediction(evaluation: Evaluation) -> bool:
    """Tell whether a classifier gives the same class to every example though the labels differ."""
    if evaluation.metrics.get("predicted_classes") != 1.0:
        return False
    return evaluation.metrics["majority_accuracy"] < 1.0


def label_entropy(evaluation: Evaluation) -> float:
    """Return the entropy of a classification's labels in nats: the best constant predictor's loss.

    >>> items = tuple({"label": label} for label in (0, 1))
    >>> round(label_entropy(Evaluation(split="", items=items, metrics={}, headline="")), 4)
    0.6931
    """
    number = len(evaluation.items)
    counts = _counts(evaluation.items, "label").values()
    return -sum(count / number * math.log(count / number) for count in counts)


_Items = Callable[[Tensor, Tensor], list[dict[str, Any]]]
_Metrics = Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]
_TASKS: dict[str, tuple[_Items, _Metrics]] = {
    "classification": (_classification_items, _classification_metrics),
    "image_classification": (_classification_items, _classification_metrics),
    "regression": (_regression_items, _regression_metrics),
    "completion": (_token_items, _token_metrics),
    "chat": (_token_items, _token_metrics),
    "text": (_token_items, _token_metrics),
}

"""Scores item by item, against numbers worked by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deltatune.comparison.evaluation import evaluate, is_constant_prediction
from deltatune.errors import InputError


class _Table(nn.Module):
    """Gives the logits that a table holds for the first token of each example."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.table[input_ids[:, 0]])


class _Tokens(nn.Module):
    """Gives every position uniform logits over a vocabulary of four."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4) + self.zero)


def _collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], list):
        labels = [row + [-100] * (width - len(row)) for row in labels]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def _score(model, rows, task):
    return evaluate(model, rows, _collate, task=task, split="test", batch_size=2)


def test_classification_scores_match_hand_worked_numbers():
    rows = [
        {"input_ids": [i] + [0] * (3 - i), "labels": label} for i, label in enumerate((0, 1, 1))
    ]
    model = _Table([[math.log(3.0), 0.0], [0.0, math.log(3.0)], [math.log(3.0), 0.0]])
    scores = _score(model, rows, "classification")
    assert [item["correct"] for item in scores.items] == [True, True, False]
    assert [item["confidence"] for item in scores.items] == pytest.approx([0.75] * 3)
    assert scores.metrics["accuracy"] == pytest.approx(2 / 3)
    assert scores.metrics["loss"] == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)
    # class 0: 2 * 1 / (2 predicted + 1 present); class 1: 2 * 1 / (1 + 2)
    assert scores.metrics["macro_f1"] == pytest.approx(2 / 3)
    assert scores.metrics["majority_accuracy"] == pytest.approx(2 / 3)
    assert not is_constant_prediction(scores)


def test_items_keep_the_order_of_the_examples_though_batches_are_by_length():
    rows = [{"input_ids": [i] + [0] * (5 - i), "labels": i % 2} for i in range(5)]
    scores = _score(_Table([[1.0, 0.0]] * 5), rows, "classification")
    assert [item["label"] for item in scores.items] == [0, 1, 0, 1, 0]
    assert is_constant_prediction(scores)


def test_regression_gives_the_correlation_and_zero_for_a_constant():
    rows = [{"input_ids": [i], "labels": float(i)} for i in range(3)]
    scores = _score(_Table([[0.0], [2.0], [4.0]]), rows, "regression")
    assert scores.metrics["pearson"] == pytest.approx(1.0)
    assert scores.metrics["mean_squared_error"] == pytest.approx((0 + 1 + 4) / 3)
    assert _score(_Table([[1.0]] * 3), rows, "regression").metrics["pearson"] == 0.0


def test_token_scores_count_only_supervised_tokens_after_the_shift():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"input_ids": [1, 2], "labels": [1, -100]},
    ]
    scores = _score(_Tokens(), rows, "completion")
    assert [item["tokens"] for item in scores.items] == [2, 0]
    assert scores.metrics["loss"] == pytest.approx(math.log(4))
    assert scores.metrics["perplexity"] == pytest.approx(4.0)


def test_evaluate_takes_the_first_examples_and_leaves_the_mode_alone():
    rows = [{"input_ids": [i], "labels": 0} for i in range(4)]
    model = _Table([[1.0, 0.0]] * 4).train()
    scores = evaluate(
        model, rows, _collate, task="classification", split="test", batch_size=3, at_most=2
    )
    assert len(scores.items) == 2
    assert model.training


def test_evaluate_refuses_an_empty_split_by_name():
    with pytest.raises(InputError, match="the test split is empty"):
        _score(_Tokens(), [], "text")

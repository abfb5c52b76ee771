"""The suite that every declared objective passes, and each with numbers of its own."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltatune import parts
from deltatune.errors import InputError
from deltatune.objectives.next_token import NextToken
from deltatune.objectives.regression import Regression
from deltatune.objectives.sequence_classification import SequenceClassification

OBJECTIVES = parts.known("objectives")
LABELS = {  # what the labels of a task look like: (rows, numbers in each row, classes or 1)
    "completion": (4, 6, 11),
    "classification": (4, None, 5),
    "regression": (4, None, 1),
}


def examples(objective: Any) -> tuple[Tensor, Tensor]:
    """Return logits and labels of a task's shape, some labels left out."""
    generator = torch.Generator().manual_seed(3)
    rows, length, classes = next(LABELS[t] for t in objective.tasks if t in LABELS)
    shape = (rows,) if length is None else (rows, length)
    logits = torch.randn(*shape, classes, generator=generator)
    if classes == 1:
        labels = torch.randn(shape, generator=generator)
    else:
        labels = torch.randint(0, classes, shape, generator=generator)
    labels[1] = objective.ignored_label
    if length is not None:
        labels[0, :3] = objective.ignored_label
    return logits, labels


def total(objective: Any, logits: Tensor, labels: Tensor) -> Tensor:
    result: Tensor = objective.total(SimpleNamespace(logits=logits), {"labels": labels})
    return result


@pytest.fixture(params=list(OBJECTIVES))
def objective(request: pytest.FixtureRequest) -> Any:
    return OBJECTIVES[request.param].options()


def test_objective_is_a_sum_in_float32_and_its_count_an_integer(objective: Any) -> None:
    logits, labels = examples(objective)
    summed = total(objective, logits, labels)
    count = objective.count({"labels": labels})
    assert (summed.shape, summed.dtype) == ((), torch.float32)
    assert (count.shape, count.dtype) == ((), torch.int64)
    twice = total(objective, logits.repeat(2, *[1] * (logits.ndim - 1)), torch.cat([labels] * 2))
    assert twice.item() == pytest.approx(2 * summed.item(), rel=1e-6)


def test_objective_ignores_what_carries_no_label(objective: Any) -> None:
    logits, labels = examples(objective)
    changed = logits.clone()
    changed[1] += 100.0
    assert torch.equal(total(objective, changed, labels), total(objective, logits, labels))
    nothing = torch.full_like(labels, objective.ignored_label)
    assert objective.count({"labels": nothing}) == 0
    assert total(objective, logits, nothing) == 0


def test_objective_does_not_depend_on_the_split_into_micro_batches(objective: Any) -> None:
    logits, labels = examples(objective)

    def gradient(pieces: list[slice]) -> Tensor:
        leaf = logits.clone().requires_grad_()
        count = sum(int(objective.count({"labels": labels[p]})) for p in pieces)
        for piece in pieces:
            (total(objective, leaf[piece], labels[piece]) / count).backward()
        assert leaf.grad is not None
        return leaf.grad

    whole = gradient([slice(0, 4)])
    # Sums in another order: a few units in the last place of float32.
    torch.testing.assert_close(gradient([slice(0, 1), slice(1, 4)]), whole, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        gradient([slice(i, i + 1) for i in range(4)]), whole, rtol=1e-6, atol=1e-7
    )


def test_objective_computes_bfloat16_logits_in_float32(objective: Any) -> None:
    logits, labels = examples(objective)
    rounded = logits.bfloat16()
    # The same rounded numbers: widening is exact, so the totals are equal to the bit.
    assert torch.equal(total(objective, rounded, labels), total(objective, rounded.float(), labels))


def test_objective_gives_finite_gradients_when_nothing_is_supervised(objective: Any) -> None:
    logits, labels = examples(objective)
    leaf = logits.clone().requires_grad_()
    total(objective, leaf, torch.full_like(labels, objective.ignored_label)).backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_every_task_has_at_most_one_objective() -> None:
    tasks = [task for declared in OBJECTIVES.values() for task in declared.options.tasks]
    assert len(set(tasks)) == len(tasks)
    assert {"classification", "regression", "completion", "chat", "text"} <= set(tasks)


def test_next_token_equals_shifted_cross_entropy() -> None:
    logits, labels = examples(NextToken())
    mean = total(NextToken(), logits, labels) / NextToken().count({"labels": labels})
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(mean, expected)


def test_next_token_of_uniform_logits_is_the_logarithm_of_the_vocabulary() -> None:
    labels = torch.tensor([[-100, 2, 3, -100, 1]])
    assert NextToken().count({"labels": labels}) == 3
    assert total(NextToken(), torch.zeros(1, 5, 7), labels).item() == pytest.approx(3 * math.log(7))


def test_next_token_does_not_depend_on_padding() -> None:
    logits, labels = examples(NextToken())
    padded_logits = F.pad(logits, (0, 0, 0, 3), value=5.0)
    padded_labels = F.pad(labels, (0, 3), value=-100)
    assert torch.equal(
        total(NextToken(), padded_logits, padded_labels), total(NextToken(), logits, labels)
    )


def test_next_token_never_uses_the_first_label() -> None:
    labels = torch.tensor([[5, -100, -100]])
    assert NextToken().count({"labels": labels}) == 0


def test_sequence_classification_equals_cross_entropy() -> None:
    logits, labels = examples(SequenceClassification())
    torch.testing.assert_close(
        total(SequenceClassification(), logits, labels),
        F.cross_entropy(logits, labels, reduction="sum"),
    )


def test_regression_is_the_sum_of_squares() -> None:
    labels = torch.tensor([1.0, -100.0, float("nan")])
    logits = torch.tensor([[3.0], [-99.0], [7.0]])
    assert Regression().count({"labels": labels}) == 2
    assert total(Regression(), logits, labels).item() == 4.0 + 1.0


def test_regression_refuses_a_head_of_another_width() -> None:
    with pytest.raises(InputError, match=r"predicts 2 numbers per sequence"):
        total(Regression(), torch.zeros(3, 2), torch.zeros(3))

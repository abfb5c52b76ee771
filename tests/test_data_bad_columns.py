"""Every wrong column, label or message ends in one line that names the place and the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from deltatune.data.loading import load
from tests.test_data_bad_input import file_with, labelled, refusal


def test_missing_column_names_the_nearest_first() -> None:
    rows = [{"text": "a", "label": 0, "quality": 1}]
    message = refusal(rows, columns={"label": "qualty"})
    assert message == "column 'qualty' is not known: choose one of 'quality', 'label', 'text'"


def test_unknown_role_and_task_name_the_known_ones() -> None:
    assert "column role 'lable' is not known: choose one of 'label'" in refusal(
        labelled(0, 1), columns={"lable": "label"}
    )
    assert "task 'classify' is not known" in refusal(labelled(0, 1), task="classify")


def test_role_of_another_task_is_refused() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": 1}]
    message = refusal(rows, columns={"label": "label"}, task="completion")
    assert (
        message
        == "role 'label' does not belong to task 'completion': it has prompt, completion, context"
    )


def test_ambiguous_columns_are_a_question_with_its_answer() -> None:
    two = [{"text": "a", "score": 1, "rating": 2}]
    assert refusal(two) == (
        "the columns score and rating could each be the label: say which, for example "
        "--column label=score"
    )
    none = [{"left": "a", "right": "b", "label": 1}]
    assert "no column is known to be the text; there are left, right, label" in refusal(none)
    both = [{"prompt": "a", "completion": "b", "label": 1}]
    assert "give the task, completion or classification" in refusal(both)


def test_split_without_a_column_of_train_is_named() -> None:
    message = refusal({"train": labelled(0, 1), "test": [{"text": "a"}]})
    assert "test has no column 'label', which train has as the label" in message


@pytest.mark.parametrize("missing", [{"text": "b"}, {"text": "b", "label": None}])
def test_row_without_a_field_is_named(missing: dict[str, Any]) -> None:
    rows = [*labelled(0, 1), missing, missing]
    assert refusal(rows) == (
        "row 3 of train has no value for 'label', the label (2 such rows): complete the row or "
        "take it out"
    )


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_empty_text_is_named(empty: str) -> None:
    rows = [*labelled(0, 1), {"text": empty, "label": 1}]
    assert "row 3 of train has an empty 'text', the text" in refusal(rows)


def test_empty_csv_label_is_named(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.csv", "text,label\na,1\nb,\nc,0\n")
    assert "row 2 of train has an empty 'label'" in refusal(path)


def test_label_that_train_never_shows_is_named_with_split_and_counts() -> None:
    parts = {"train": labelled("a", "b"), "test": labelled("a", "c", "c", "d")}
    message = refusal(parts)
    assert (
        "column 'label' of test has labels that train never shows: 'c' (2 rows), 'd' (1 rows)"
        in message
    )
    assert "train has 'a', 'b'" in message


def test_unlabelled_rows_of_a_class_column_are_named() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])}
    )
    parts = {
        name: datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features)
        for name, labels in {"train": [0, 1], "test": [-1, -1]}.items()
    }
    message = refusal(parts)
    assert "holds -1 in row 1 of test, which stands for no label" in message


@pytest.mark.parametrize("label", ["same", 3])
def test_label_column_with_one_class_is_refused(label: Any) -> None:
    message = refusal(labelled(label, label))
    assert f"holds only '{label}' in all 2 rows of train" in message


def test_constant_numbers_are_refused_for_regression() -> None:
    assert "holds only 0.5 in train" in refusal(labelled(0.5, 0.5))


@pytest.mark.parametrize("label", [float("nan"), float("inf")])
def test_label_that_is_not_finite_is_named(label: float) -> None:
    assert "in row 2 of train: regression needs a finite number" in refusal(
        labelled(0.5, label, 1.5)
    )


def test_text_label_is_refused_for_regression() -> None:
    message = refusal(labelled("good", "bad"), task="regression")
    assert "holds 'good' in row 1 of train: regression needs a finite number" in message


def test_fractional_label_is_refused_for_classification() -> None:
    assert "holds 0.5, which is no class" in refusal(labelled(0.5, 1.0), task="classification")


def test_label_lists_are_refused() -> None:
    assert "column 'label' holds a list in row 1 of train" in refusal(labelled([0, 1], [1]))


def test_column_with_a_different_label_in_every_row_is_questioned() -> None:
    message = refusal(labelled(*range(200)))
    assert "has 200 different values in 200 rows" in message
    assert load(labelled(*range(200)), task="regression").task == "regression"


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "holds no messages"),
        ([{"role": "user", "content": "a"}], "has no assistant message"),
        ([{"content": "a"}], "message 1 has no role"),
        ([{"role": "robot", "content": "a"}], "message 1 has the role 'robot': give one of system"),
        ([{"role": "assistant", "content": None}], "message 1 (assistant) has no content"),
    ],
)
def test_faulty_conversation_names_row_and_message(
    messages: list[dict[str, Any]], fault: str
) -> None:
    fine = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    message = refusal(
        [{"messages": fine}, {"messages": messages}], columns={"messages": "messages"}
    )
    assert "row 2 of train" in message
    assert fault in message


def test_message_column_that_is_text_is_refused() -> None:
    rows = [{"messages": json.dumps([{"role": "user", "content": "a"}])}]
    message = refusal(rows, columns={"messages": "messages"})
    assert "messages must be a list of turns" in message


def test_text_column_that_is_a_list_is_refused() -> None:
    rows = [{"words": ["a", "b"], "label": 1}]
    assert "but the text must be text" in refusal(rows, columns={"text": "words"})

"""Every wrong input of the loader ends in one line that names the place and the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from deltatune.data import sources
from deltatune.data.loading import load
from deltatune.errors import InputError


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def file_with(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"t{place}", "label": label} for place, label in enumerate(labels)]


def test_missing_path_names_the_nearest_existing_ones(tmp_path: Path) -> None:
    for name in ("train.jsonl", "zebra.txt"):
        file_with(tmp_path, name, "x")
    message = refusal(tmp_path / "tain.jsonl")
    assert message == (
        f"data {tmp_path}/tain.jsonl does not exist: in {tmp_path} there are train.jsonl, zebra.txt"
    )


def test_missing_folder_names_what_lies_in_the_deepest_existing_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert f"in {tmp_path} there are data" in refusal(tmp_path / "date" / "more" / "train.jsonl")


def test_unreadable_suffix_names_the_allowed_ones(tmp_path: Path) -> None:
    message = refusal(file_with(tmp_path, "rows.xlsx", "x"))
    assert (
        "suffix '.xlsx', which cannot be read: give one of .jsonl, .ndjson, .json, .csv" in message
    )


@pytest.mark.parametrize(("suffix", "kind"), [("pkl", "a pickle"), ("py", "a loading script")])
@pytest.mark.parametrize("exists", [True, False])
def test_files_that_run_code_are_refused(
    suffix: str, kind: str, exists: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"rows.{suffix}"
    if exists:
        path.write_bytes(b"x")
    assert f"is refused: {kind} runs code when it is loaded" in refusal(path)


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.txt"]
)
def test_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    assert "rows" in refusal(file_with(tmp_path, name, ""))
    assert f"{name} is empty" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", "text,label\n")]
)
def test_file_without_rows_is_refused(name: str, content: str, tmp_path: Path) -> None:
    assert f"{name} holds no rows" in refusal(file_with(tmp_path, name, content))


def test_broken_json_line_is_named_and_shown_shortened(tmp_path: Path) -> None:
    broken = '{"text": "' + "long " * 30
    path = file_with(tmp_path, "a.jsonl", f'{{"text": "fine"}}\n\n{broken}\n{{"text": "b"}}\n')
    message = refusal(path)
    assert message.startswith(f"{path}, line 3 is not JSON (Unterminated string")
    assert message.endswith('{"text": "' + ("long " * 10) + "...")


def test_json_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.jsonl", '{"text": "fine"}\n[1, 2]\n')
    assert "line 2 is not a JSON object" in refusal(path)


def test_broken_json_file_names_its_line(tmp_path: Path) -> None:
    message = refusal(file_with(tmp_path, "a.json", '[{"text": "a"},\n {"text" "b"}]'))
    assert "is not JSON (Expecting ':' delimiter in line 2, character 10)" in message
    assert "not JSON" in refusal(file_with(tmp_path, "b.json", "[\n"))


def test_json_file_without_a_list_of_rows_is_refused(tmp_path: Path) -> None:
    message = refusal(file_with(tmp_path, "a.json", '{"a": [{"x": 1}], "b": [{"x": 2}]}'))
    assert "holds no list of rows" in message


def test_file_in_another_encoding_names_the_byte(tmp_path: Path) -> None:
    content = b'{"text": "plain"}\n{"text": "caf\xe9"}\n'
    message = refusal(file_with(tmp_path, "a.jsonl", content))
    assert f"is not UTF-8: byte {content.index(0xE9)} in line 2 is 0xe9" in message
    assert "is not UTF-8" in refusal(file_with(tmp_path, "a.csv", b"text,label\ncaf\xe9,1\n"))
    assert "is not UTF-8" in refusal(file_with(tmp_path, "a.txt", b"caf\xe9"))


def test_half_a_character_is_refused_by_column() -> None:
    assert "column 'text' cannot be made one table column" in refusal([{"text": "\ud800"}])


def test_csv_row_with_too_few_cells_is_refused(tmp_path: Path) -> None:
    message = refusal(file_with(tmp_path, "a.csv", "text,label\na,1\nb\n"))
    assert "is not a table of 2 columns" in message
    assert "Row #3" in message


def test_csv_with_a_doubled_column_is_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.csv", "text,text\na,b\n")
    assert "has the column 'text' twice" in refusal(path)


def test_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    assert "is not a Parquet file" in refusal(file_with(tmp_path, "a.parquet", "text"))


def test_column_of_two_kinds_names_both_places(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.jsonl", '{"label": "a"}\n{"label": null}\n{"label": 1}\n')
    message = refusal(path)
    assert "column 'label' holds text in line 1 and a number in line 3" in message


def test_folder_without_train_file_lists_what_it_holds(tmp_path: Path) -> None:
    file_with(tmp_path, "validation.jsonl", '{"text": "a"}\n')
    message = refusal(tmp_path)
    assert "has no train file" in message
    assert "it holds validation.jsonl" in message


def test_folder_with_one_split_twice_is_refused(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.csv"):
        file_with(tmp_path, name, "x")
    assert "has one split more than once (train.csv, train.jsonl)" in refusal(tmp_path)


def test_folder_of_a_half_saved_data_set_is_refused(tmp_path: Path) -> None:
    file_with(tmp_path, "state.json", "{}")
    assert "is not a complete saved data set" in refusal(tmp_path)


@pytest.mark.parametrize("source", [3, [1, 2], {"train": 7}, None])
def test_object_of_another_kind_is_refused(source: Any) -> None:
    assert "which cannot be read: give a path, a Hugging Face name" in refusal(source)


@pytest.mark.parametrize("source", [[], datasets.Dataset.from_dict({"text": []})])
def test_object_without_rows_is_refused(source: Any) -> None:
    assert refusal(source) == "the data holds no rows: give at least one"


def test_splits_without_train_are_refused() -> None:
    assert "has no split named train; it has test" in refusal({"test": labelled(0, 1)})


def test_name_that_is_no_file_and_cannot_be_reached_says_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    (tmp_path / "reviews").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources.urllib.request, "urlopen", unreachable)
    assert refusal("reveiws") == (
        "'reveiws' is neither a file or folder here (nearest here: reviews) nor a reachable "
        "Hugging Face data set: https://huggingface.co does not answer"
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Dataset scripts are no longer supported, but found glue.py"),
        ValueError("Config name is missing."),
        ConnectionError("offline mode"),
    ],
)
def test_hub_data_set_that_cannot_be_loaded_says_why(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        assert arguments == ("owner/name", "part")
        raise error

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", fails)
    assert refusal("owner/name:part").endswith(f"reachable Hugging Face data set: {error}")


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

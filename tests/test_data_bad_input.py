"""Every wrong input of the loader ends in one line that names the place and the fix."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import datasets
import pytest

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


@pytest.mark.parametrize(
    ("name", "sign"), [("rows.csv", ";"), ("rows.csv", "\t"), ("rows.tsv", ",")]
)
def test_table_with_another_separator_is_not_taken_for_one_column(
    name: str, sign: str, tmp_path: Path
) -> None:
    file = file_with(tmp_path, name, f"text{sign}label\na cat{sign}a\na dog{sign}b\n")
    assert f"is separated by {sign!r} and not by" in refusal(file)


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
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
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

"""Sources become checked examples with roles, labels and splits."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

from deltatune.data.loading import load
from deltatune.errors import InputError

ROWS = [{"text": f"text {number}", "label": ("no", "yes")[number % 2]} for number in range(20)]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shared(name: str) -> Path:
    root = Path(
        os.environ.get("DELTATUNE_SHARED_DATA", Path(__file__).parents[1] / "../shared/data")
    )
    if not (root / name).exists():
        pytest.skip(f"real data is absent: {root / name}")
    return root / name


def write_as(kind: str, folder: Path) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        write_lines(path, ROWS)
    elif kind == "json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif kind == "csv":
        path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in ROWS))
    elif kind == "tsv":
        path.write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_load_gives_the_same_examples_for_every_file_format(kind: str, tmp_path: Path) -> None:
    examples = load(write_as(kind, tmp_path))
    from_object = load(ROWS)

    assert examples.task == "classification"
    assert examples.label_names == ("no", "yes")
    assert examples.fingerprint == from_object.fingerprint
    for split in ("train", "validation"):
        assert examples.splits[split].to_list() == from_object.splits[split].to_list()


def test_load_reads_every_kind_of_python_object_alike(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    parts = datasets.DatasetDict({"train": table, "test": table.select(range(4))})
    parts.save_to_disk(str(tmp_path / "both"))
    table.save_to_disk(str(tmp_path / "one"))

    assert load(table).fingerprint == load(ROWS).fingerprint
    assert load(tmp_path / "one").fingerprint == load(ROWS).fingerprint
    assert load(tmp_path / "both").fingerprint == load(parts).fingerprint
    assert load({"train": ROWS, "test": ROWS[:4]}).fingerprint == load(parts).fingerprint
    assert list(load(parts).splits) == ["train", "validation", "test"]


def test_load_respects_the_row_choice_of_a_dataset() -> None:
    chosen = datasets.Dataset.from_list(ROWS).select([3, 2, 5])
    examples = load(chosen, validation_fraction=0)
    assert examples.splits["train"]["text"][:] == ["text 3", "text 2", "text 5"]


def test_load_finds_split_files_under_their_usual_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "train-00000-of-00002.jsonl", ROWS[:8])
    write_lines(tmp_path / "train-00001-of-00002.jsonl", ROWS[8:16])
    write_lines(tmp_path / "dev.jsonl", ROWS[16:])
    (tmp_path / "README.md").write_text("not data")

    examples = load(tmp_path)

    assert {split: rows.num_rows for split, rows in examples.splits.items()} == {
        "train": 16,
        "validation": 4,
    }
    assert examples.splits["train"][15]["text"] == "text 15"


def test_load_takes_the_only_split_of_a_kind_and_tells_what_it_leaves_out() -> None:
    examples = load({"train_sft": ROWS, "test_sft": ROWS[:4], "extra": ROWS})
    assert examples.splits["test"].num_rows == 4
    assert "splits not used: extra" in examples.notes


def test_text_file_is_divided_at_blank_lines_or_else_at_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nstill one\n\n\ntwo\n")
    (tmp_path / "b.txt").write_text("one\ntwo\nthree\n")
    paragraphs = load(tmp_path / "a.txt", validation_fraction=0)
    lines = load(tmp_path / "b.txt", validation_fraction=0)
    assert paragraphs.task == "text"
    assert paragraphs.splits["train"]["text"][:] == ["one\nstill one", "two"]
    assert lines.splits["train"]["text"][:] == ["one", "two", "three"]


def test_json_file_that_holds_json_lines_is_read_as_such(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.json", ROWS)
    assert load(path).fingerprint == load(ROWS).fingerprint


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + write_as("csv", tmp_path).read_bytes())
    assert load(path).columns == {"text": "text", "label": "label"}


def test_csv_texts_stay_text_though_they_look_like_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,completion\n1+1,007\n"two,\nlines",08\n')
    train = load(tmp_path / "rows.csv", validation_fraction=0).splits["train"]
    assert train.to_list() == [
        {"prompt": "1+1", "completion": "007"},
        {"prompt": "two,\nlines", "completion": "08"},
    ]


def test_rows_in_different_portions_may_lack_unused_fields(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(5000)]
    rows[4999]["source"] = "web"
    assert load(write_lines(tmp_path / "rows.jsonl", rows)).columns == {
        "text": "text",
        "label": "label",
    }


@pytest.mark.parametrize(
    ("row", "task", "roles"),
    [
        (
            {"sentence1": "a", "sentence2": "b", "label": 1},
            "classification",
            "text second_text label",
        ),
        (
            {"premise": "a", "hypothesis": "b", "label": 1},
            "classification",
            "text second_text label",
        ),
        ({"quote": "a", "label": 1, "idx": 3}, "classification", "text label"),
        ({"sentence": "a", "score": 0.5}, "regression", "text label"),
        ({"prompt": "a", "completion": "b"}, "completion", "prompt completion"),
        ({"question": "a", "answer": "b", "category": "c"}, "completion", "prompt completion"),
        (
            {"instruction": "a", "input": "", "output": "b"},
            "completion",
            "prompt context completion",
        ),
        ({"text": "a", "url": "b"}, "text", "text"),
        ({"prompt": "a", "messages": [{"role": "assistant", "content": "b"}]}, "chat", "messages"),
    ],
)
def test_roles_and_task_are_told_from_known_names(
    row: dict[str, Any], task: str, roles: str
) -> None:
    other = {
        name: value + 1 if isinstance(value, int | float) else value for name, value in row.items()
    }
    examples = load([row, other], validation_fraction=0)
    assert (examples.task, " ".join(examples.columns)) == (task, roles)


def test_given_columns_and_task_win_over_the_guess() -> None:
    rows = [{"text": "a", "note": f"b{n}", "label": 0, "quality": n % 3} for n in range(9)]
    labelled = load(rows, columns={"label": "quality", "text": "note"})
    numbers = load(rows, columns={"label": "quality"}, task="regression")
    plain = load(rows, task="text")
    assert labelled.columns == {"text": "note", "label": "quality"}
    assert labelled.label_names == ("0", "1", "2")
    assert (numbers.task, numbers.label_names) == ("regression", ())
    assert numbers.splits["train"].features["quality"].dtype == "float64"
    assert (plain.task, plain.columns) == ("text", {"text": "text"})


def test_class_label_names_and_order_are_kept() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a", "never"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    examples = load(rows, validation_fraction=0)
    assert examples.label_names == ("z", "a", "never")
    assert examples.splits["train"]["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ([5, 10, 1], ("1", "5", "10"), [1, 2, 0]),
        (["5", "10", "1"], ("1", "5", "10"), [1, 2, 0]),
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([2.0, 1.0, 2.0], ("1", "2"), [1, 0, 1]),
    ],
)
def test_class_ids_follow_the_order_of_names(
    labels: list[Any], names: tuple[str, ...], ids: list[int]
) -> None:
    rows = [{"text": f"t{label}", "label": label} for label in labels]
    examples = load(rows, validation_fraction=0)
    assert examples.label_names == names
    assert examples.splits["train"]["label"][:] == ids


def test_share_gpt_turns_become_roles_and_contents() -> None:
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "world"}]
    examples = load([{"conversations": turns}], validation_fraction=0)
    assert examples.splits["train"][0]["conversations"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "world"},
    ]


def test_validation_part_is_chosen_by_content_not_by_order() -> None:
    split = load(ROWS, seed=3).splits["validation"]["text"][:]
    reversed_split = load(ROWS[::-1], seed=3).splits["validation"]["text"][:]
    other_seed = load(ROWS, seed=4).splits["validation"]["text"][:]
    # the documented rule by hand: smallest sha256 of seed, zero byte and the row's inputs
    keys = sorted(
        (
            hashlib.sha256(b"3\x00" + json.dumps({"text": row["text"]}).encode()).digest(),
            row["text"],
        )
        for row in ROWS
    )
    assert len(split) == 2
    assert sorted(split) == sorted(reversed_split) == sorted(text for _, text in keys[:2])
    assert sorted(other_seed) != sorted(split)


def test_rows_with_equal_inputs_stay_on_one_side() -> None:
    rows = [{"prompt": f"p{n // 5}", "completion": f"c{n}"} for n in range(50)]
    for seed in range(8):
        splits = load(rows, seed=seed, validation_fraction=0.3).splits
        assert not set(splits["train"]["prompt"]) & set(splits["validation"]["prompt"])


def test_every_class_stays_in_training() -> None:
    rows = [{"text": f"t{n}", "label": n} for n in range(10)]
    for seed in range(5):
        examples = load(rows + rows[:1], seed=seed, validation_fraction=0.9)
        assert set(examples.splits["train"]["label"]) == set(range(10))


def test_validation_part_is_split_off_where_every_number_occurs_once() -> None:
    rows = [{"text": f"t{i}", "label": i / 7} for i in range(40)]
    assert load(rows, task="regression").splits["validation"].num_rows == 4


def test_single_row_keeps_no_validation_part_and_says_so() -> None:
    examples = load([{"text": "only one"}])
    assert list(examples.splits) == ["train"]
    assert any("too few rows" in note for note in examples.notes)


def test_real_data_keeps_its_counts_and_labels() -> None:
    pairs = load(shared("mrpc"), validation_fraction=0)
    assert {split: rows.num_rows for split, rows in pairs.splits.items()} == {
        "train": 3668,
        "test": 1725,
    }
    assert sum(pairs.splits["test"]["label"]) == 1147  # 1725 * 0.665: the majority class
    problems = load(shared("gsm8k") / "train.jsonl")
    assert problems.columns == {"prompt": "question", "completion": "answer"}
    assert problems.splits["train"].num_rows + problems.splits["validation"].num_rows == 7473


def test_examples_table_shows_roles_without_reading_brackets_as_markup() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(
        load([{"text": "in [red]town[/red]"}, {"text": "b"}], validation_fraction=0).table()
    )
    assert "in [red]town[/red]" in console.export_text()


def test_validation_fraction_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"validation_fraction=1 is not allowed: give a number in"):
        load(ROWS, validation_fraction=1)

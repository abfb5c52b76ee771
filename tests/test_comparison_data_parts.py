"""Every run of a comparison loads the same three parts, and the given test stays whole."""

from __future__ import annotations

import pytest

from deltatune.comparison.data_parts import data_parts
from deltatune.data.loading import load
from deltatune.errors import InputError
from tests.folders import classifications, completions, rows_file


def counts(parts):
    return {name: rows.num_rows for name, rows in parts.examples.splits.items()}


def test_data_with_three_parts_is_loaded_as_it_is(tmp_path):
    parts = data_parts(
        "deltatune/boxes:train=20,validation=5,test=6", tmp_path / "data", columns=None, task=None
    )
    assert counts(parts) == {"train": 20, "validation": 5, "test": 6}
    assert parts.source.startswith("deltatune/boxes")
    assert not (tmp_path / "data").exists()


def test_data_without_parts_is_divided_once_and_kept(tmp_path):
    rows = rows_file(tmp_path / "rows.jsonl", classifications(100))
    parts = data_parts(rows, tmp_path / "data", columns=None, task=None)
    found = counts(parts)
    assert found["test"] == 10
    assert found["validation"] == 9
    assert sum(found.values()) == 100
    texts = [set(rows["text"]) for rows in parts.examples.splits.values()]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    again = load(parts.source, columns=parts.columns, task=parts.task, seed=5)
    assert again.label_names == parts.examples.label_names == ("cat", "dog")
    assert again.splits["train"]["text"][:] == parts.examples.splits["train"]["text"][:]
    second = data_parts(rows, tmp_path / "data", columns=None, task=None)
    assert second.examples.fingerprint == parts.examples.fingerprint


def test_a_given_validation_part_becomes_the_test_and_a_new_one_is_split_off(tmp_path):
    data = {"train": completions(40), "validation": completions(60)[40:]}
    parts = data_parts(data, tmp_path / "data", columns=None, task=None)
    assert parts.examples.splits["test"]["prompt"][:] == [r["prompt"] for r in data["validation"]]
    assert counts(parts)["validation"] == 4
    assert any("validation part is the test" in note for note in parts.notes)


def test_other_data_or_changed_rows_are_not_taken_for_those_that_were_kept(tmp_path):
    rows = classifications(60)
    file = rows_file(tmp_path / "rows.jsonl", rows)
    parts = data_parts(file, tmp_path / "data", columns=None, task=None)
    assert parts.name == str(file)
    rows_file(file, [*rows[:-1], {**rows[-1], "text": "the cat was changed"}])
    with pytest.raises(InputError, match=r"keeps the parts of other data than '.*rows.jsonl' is"):
        data_parts(file, tmp_path / "data", columns=None, task=None)
    # The same rows in another format and place are the same data.
    again = data_parts(rows, tmp_path / "data", columns=None, task=None)
    assert again.examples.fingerprint == parts.examples.fingerprint
    assert again.name == "list of 60 rows"


def test_images_that_were_kept_are_known_again(tmp_path):
    data = {
        name: load("deltatune/digits-5-9").splits[name].select(range(30)) for name in ("train",)
    }
    first, second = (data_parts(data, tmp_path / "data", columns=None, task=None) for _ in "ab")
    assert first.examples.fingerprint == second.examples.fingerprint


def test_a_given_test_part_is_never_divided(tmp_path):
    data = {"train": completions(40), "test": completions(60)[40:]}
    parts = data_parts(data, tmp_path / "data", columns=None, task=None)
    assert counts(parts) == {"train": 36, "validation": 4, "test": 20}


def test_too_few_rows_for_three_parts_are_refused(tmp_path):
    with pytest.raises(InputError, match="too few to split a part off"):
        data_parts(completions(2)[:1], tmp_path / "data", columns=None, task=None)
    assert not (tmp_path / "data").exists()

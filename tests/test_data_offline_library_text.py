"""The text that nano read, and the files that it never saw."""

from __future__ import annotations

from deltatune.data.offline.library_text import PIECE, TASK, library_parts
from deltatune.data.offline.standard_library import is_held_out


def test_library_parts_hold_out_by_path_and_leave_tests_out() -> None:
    parts = library_parts()
    assert all(is_held_out(path) for path in parts.held_out)
    assert not any(is_held_out(path) for path in parts.train)
    assert not [path for path in parts.train if "test" in path.split("/")[:-1]]
    assert {"operator.py", "runpy.py"} <= set(parts.held_out)
    assert "encodings/cp437.py" in parts.dropped


def test_library_parts_keep_no_copy_of_a_held_out_file() -> None:
    parts = library_parts()

    def long_lines(text: str) -> set[str]:
        return {line for line in map(str.strip, text.splitlines()) if len(line) >= 20}

    held_out = {line for text in parts.held_out.values() for line in long_lines(text)}
    for text in parts.train.values():
        lines = long_lines(text)
        assert len(lines & held_out) <= len(lines) / 2


def test_library_text_splits_come_from_different_files() -> None:
    splits = TASK.load(train=30, validation=20, test=20)
    files = {split: set(splits[split]["file"]) for split in splits}
    assert not files["test"] & files["validation"]
    assert not files["train"] & (files["test"] | files["validation"])
    assert all(is_held_out(path) for path in files["test"] | files["validation"])
    assert not any(is_held_out(path) for path in files["train"])
    assert max(len(text) for text in splits["test"]["text"]) <= PIECE + 200  # one line may be long

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from deltatune import files


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bytes go, but not to the disk: the kernel reports a full disk at the latest here."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", refuse)


def test_text_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    files.write_text_atomically(tmp_path / "new" / "a.txt", "größer\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "größer\n".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_text_keeps_the_usual_permissions(tmp_path: Path) -> None:
    files.write_text_atomically(tmp_path / "a.txt", "a")
    (tmp_path / "b.txt").write_text("a")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.usefixtures("full_disk")
def test_text_leaves_the_old_content_and_nothing_beside_it_when_the_disk_is_full(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        files.write_text_atomically(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_what_json_has_no_form_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json_atomically(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
    files.write_json_atomically(tmp_path / "a.json", {"loss": 0.1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.1}


def test_tensors_read_back_bit_by_bit_for_every_layout_and_dtype(tmp_path: Path) -> None:
    matrix = torch.arange(15, dtype=torch.float32).reshape(3, 5)
    tensors: dict[str, Any] = {
        "transposed": matrix.T,
        'a "quoted" näme': matrix[:, 1],
        "odd": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
        "indices": torch.tensor([2**40, 3]),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
    }
    files.save_tensors_atomically(tmp_path / "a.safetensors", tensors, {"form": "x" * 500})
    loaded = load_file(tmp_path / "a.safetensors")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"form": "x" * 500}


def test_folder_appears_only_when_its_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "run" / "export"
    with files.replace_folder_atomically(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "sub" / "a.txt").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["export"]


def test_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "export"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with files.replace_folder_atomically(target) as folder:
        (folder / "new.txt").write_text("new")
        assert (target / "old.txt").exists()
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_folder_stays_as_it_was_when_the_block_is_interrupted(tmp_path: Path) -> None:
    target = tmp_path / "export"
    target.mkdir()
    (target / "old.txt").write_text("old")

    def write_half() -> None:
        with files.replace_folder_atomically(target) as folder:
            (folder / "new.txt").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [path.name for path in target.iterdir()] == ["old.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_folder_stays_as_it_was_when_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "export"
    target.mkdir()
    (target / "old.txt").write_text("old")
    rename = Path.rename

    def refuse_new(path: Path, to: Path) -> Path:
        if to == target and (path / "new.txt").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refuse_new)

    def replace() -> None:
        with files.replace_folder_atomically(target) as folder:
            (folder / "new.txt").write_text("new")

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        replace()
    assert [path.name for path in target.iterdir()] == ["old.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]

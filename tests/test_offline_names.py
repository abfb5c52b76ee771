"""`deltatune/NAME` wherever data or a model is named."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import deltatune
from deltatune.base import load_base, locate
from deltatune.data.loading import load
from deltatune.errors import InputError
from deltatune.exporting import export
from deltatune.request import Request
from deltatune.run import finetune
from tests.runs import SETTINGS

pytestmark = pytest.mark.usefixtures("nano")


def test_offline_name_gives_the_task_s_own_columns_and_kind() -> None:
    examples = load("deltatune/echo:difficulty=2,train=5")
    assert examples.task == "completion"
    assert examples.columns == {"prompt": "question", "completion": "reply"}
    assert {split: rows.num_rows for split, rows in examples.splits.items()} == {
        "train": 5,
        "validation": 4,
        "test": 6,
    }
    assert examples.source == "deltatune/echo:difficulty=2,train=5"
    assert examples.yardstick is not None
    assert (examples.yardstick.chance, examples.yardstick.ceiling) == (0.5, 1.0)
    assert load("deltatune/echo:seed=1").fingerprint != load("deltatune/echo").fingerprint


def test_other_columns_than_the_task_s_leave_its_yardstick_out() -> None:
    examples = load("deltatune/echo", columns={"prompt": "question", "completion": "animal"})
    assert examples.splits["train"][0]["animal"] == "cat"
    assert examples.yardstick is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deltatune/ecko", "offline task 'ecko' is not known: choose one of 'echo'"),
        ("deltatune/echo:difficulty=9", "difficulty of echo = 9 is not allowed"),
        ("deltatune/echo:rows=9", "option 'rows' is not known"),
        ("deltatune/echo:seed", "write name=number"),
        ("deltatune/nano", "'deltatune/nano' is a packaged base and no data: give it as the model"),
    ],
)
def test_wrong_name_of_data_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deltatune/nanno", "packaged base 'nanno' is not known: choose one of 'nano'"),
        ("deltatune/echo", "'deltatune/echo' is an offline task and no model: give it as the data"),
        ("deltatune/echo:seed=1", "is an offline task and no model"),
    ],
)
def test_wrong_name_of_a_model_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        locate(name)


def test_base_of_ours_wins_over_a_folder_of_its_name_which_a_path_still_reaches(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "here" / "deltatune" / "nano"
    other.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert locate("deltatune/nano") == str(nano)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        locate("./deltatune/nano")
    examples = load("deltatune/echo")
    inputs = Request(model="deltatune/nano", data="deltatune/echo").inputs(examples)
    assert (inputs["model"], inputs["data"]) == ("deltatune/nano", "deltatune/echo")


def test_record_of_a_base_keeps_its_name() -> None:
    base = load_base("deltatune/nano", task="completion")
    assert (base.name, base.record.name) == ("deltatune/nano", "deltatune/nano")


def test_adapter_loads_by_the_base_s_name_and_with_plain_peft(tmp_path: Path, nano: Path) -> None:
    run = finetune(
        "deltatune/nano",
        [{"prompt": f"a {i}", "completion": " b"} for i in range(12)],
        "lora",
        output=tmp_path / "run",
        assignments={**SETTINGS, "training.epochs": 1},
    )
    recorded = json.loads((run.folder / "environment.json").read_text())["inputs"]
    assert recorded["model"] == "deltatune/nano"
    assert json.loads((run.folder / "base.json").read_text())["name"] == "deltatune/nano"
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        tuned = deltatune.load(run.folder)(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(locate("deltatune/nano"))
        for folder in (run.folder / "adapter", Path(export(run.folder, "lora").folder)):
            # What peft itself follows is a place, so that its own Auto classes find the base.
            config = json.loads((folder / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == str(nano)
            by_place = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
            by_name = peft.PeftModel.from_pretrained(plain, folder)
            torch.testing.assert_close(by_place(input_ids=ids).logits, tuned)
            torch.testing.assert_close(by_name(input_ids=ids).logits, tuned)
            plain = by_name.unload()

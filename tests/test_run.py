"""The main job: what it writes, and what it does when something breaks in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deltatune
from deltatune.errors import Diverged, InputError, Interrupted, WorkError
from deltatune.recipe import named
from deltatune.run import finetune
from tests.folders import classifications, completions, model_folder, rows_file

SETTINGS = {
    "training.epochs": 2,
    "training.batch_size": 3,
    "training.accumulation": 2,
    "training.max_length": 32,
    "training.checkpoint_every": 1,
    "delta.rank": 2,
    "delta.dropout": 0.1,
}


@pytest.fixture
def llama(tmp_path):
    return model_folder(tmp_path / "llama")


@pytest.fixture
def pairs(tmp_path):
    return rows_file(tmp_path / "pairs.jsonl", completions(25))


def _adapter(folder):
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors")


def _losses(folder):
    return [
        json.loads(line)["loss"]
        for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()
    ]


def test_run_trains_query_and_value_only_and_leaves_the_base_alone(llama, pairs, tmp_path):
    before = (llama / "model.safetensors").read_bytes()
    run = finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)
    assert (llama / "model.safetensors").read_bytes() == before
    names = set(_adapter(tmp_path / "run"))
    assert names
    assert all("q_proj" in name or "v_proj" in name for name in names)
    assert run.after["loss"] < run.before["loss"]
    assert run.costs["trainable_parameters"] == sum(
        t.numel() for t in _adapter(run.folder).values()
    )


def test_run_records_each_group_s_rate_with_the_ratio_at_every_step(llama, pairs, tmp_path):
    finetune(llama, pairs, output=tmp_path / "run", assignments={**SETTINGS, "ratio": 8})
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    moved = [row["learning_rates"] for row in rows if max(row["learning_rates"].values()) > 0]
    assert len(moved) > 3
    for rates in moved:
        value = max(rates.values())
        assert all(rate in (value, pytest.approx(value / 8)) for rate in rates.values())
        assert len(set(rates.values())) == 2


def test_run_records_the_rates_of_the_step_and_not_of_the_next(llama, pairs, tmp_path):
    settings = {**SETTINGS, "value_learning_rate": 8e-3, "training.warmup": 0.5, "ratio": 4}
    finetune(llama, pairs, output=tmp_path / "run", assignments=settings)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rates"]["value"] for line in lines]
    # 23 rows in batches of 3, two to a step, twice: 8 steps, 4 of them warm up from 0.
    assert rates == pytest.approx([0, 2e-3, 4e-3, 6e-3, 8e-3, 6e-3, 4e-3, 2e-3])


def test_run_resumes_to_the_last_bit_when_stopped_in_mid_accumulation(
    llama, pairs, tmp_path, monkeypatch
):
    whole = finetune(llama, pairs, output=tmp_path / "whole", assignments=SETTINGS)
    from deltatune.bridges.progress import Progress

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "on_substep_end", stop, raising=False)
    with pytest.raises(KeyboardInterrupt):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)
    monkeypatch.undo()
    again = finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS, resume=True)
    wanted, given = _adapter(whole.folder), _adapter(again.folder)
    assert wanted.keys() == given.keys()
    assert all(torch.equal(wanted[name], given[name]) for name in wanted)
    assert _losses(whole.folder) == _losses(again.folder)
    assert again.after == whole.after


def test_run_resumes_only_with_what_it_began_with(llama, pairs, tmp_path, monkeypatch):
    from deltatune.bridges.progress import Progress

    def stop(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "on_step_end", stop, raising=False)
    with pytest.raises(KeyboardInterrupt):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds an unfinished run: add --resume"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)
    with pytest.raises(
        InputError, match=r"recipe\.delta\.rank was 2 when the run began and is 4 now"
    ):
        finetune(
            llama,
            pairs,
            output=tmp_path / "run",
            assignments={**SETTINGS, "delta.rank": 4},
            resume=True,
        )
    rows_file(pairs, completions(26))
    with pytest.raises(InputError, match=r"inputs\.data_fingerprint was"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS, resume=True)


def test_run_in_place_saves_a_delta_that_gives_the_tuned_model_back(llama, pairs, tmp_path):
    settings = {key: value for key, value in SETTINGS.items() if not key.startswith("delta.")}
    run = finetune(llama, pairs, "efficientft_full", output=tmp_path / "run", assignments=settings)
    assert (run.folder / "adapter" / "delta.safetensors").is_file()
    assert run.after["loss"] < run.before["loss"]
    model = deltatune.load(run.folder)
    base = load_file(llama / "model.safetensors")
    moved = {
        name for name, weight in model.state_dict().items() if not torch.equal(weight, base[name])
    }
    assert moved
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in moved)


def test_run_in_place_in_bfloat16_keeps_float32_weights(llama, pairs, tmp_path):
    settings = {"training.epochs": 2, "training.batch_size": 3, "training.precision": "bfloat16"}
    run = finetune(llama, pairs, "full", output=tmp_path / "run", assignments=settings)
    assert run.after["loss"] < run.before["loss"]
    change = load_file(run.folder / "adapter" / "delta.safetensors")
    floats = {tensor.dtype for tensor in change.values() if tensor.is_floating_point()}
    assert floats == {torch.float32}


def test_classification_trains_a_fresh_head_and_keeps_label_names(tmp_path):
    bert = model_folder(tmp_path / "bert", "bert", "base")
    data = rows_file(tmp_path / "rows.jsonl", classifications(60))
    settings = {"training.epochs": 12, "training.batch_size": 8, "value_learning_rate": 1e-2}
    run = finetune(bert, data, output=tmp_path / "run", assignments=settings)
    assert run.after["accuracy"] == 1.0
    from deltatune.exporting import export

    merged = Path(export(run.folder, "merged").folder)
    assert json.loads((merged / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}


def test_run_stops_at_once_when_the_loss_is_not_a_number(llama, pairs, tmp_path, monkeypatch):
    from deltatune.objectives.next_token import NextToken

    total = NextToken.total

    def broken(self, outputs, batch, *, progress=0.0):
        return total(self, outputs, batch, progress=progress) * (
            float("nan") if progress > 0.3 else 1.0
        )

    monkeypatch.setattr(NextToken, "total", broken)
    with pytest.raises(Diverged, match="the loss of step 4 is nan: lower the value learning rate"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)
    assert not (tmp_path / "run" / "adapter").exists()
    assert len(_losses(tmp_path / "run")) == 3


def test_run_stops_before_a_gradient_that_is_not_a_number_spoils_it(
    llama, pairs, tmp_path, monkeypatch
):
    from deltatune.objectives.next_token import NextToken

    total = NextToken.total

    def broken(self, outputs, batch, *, progress=0.0):
        loss = total(self, outputs, batch, progress=progress)
        if progress > 0.3:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr(NextToken, "total", broken)
    with pytest.raises(Diverged, match="the gradient of step 4 has the norm nan: lower"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)


def test_running_out_of_memory_names_the_batch_size(llama, pairs, tmp_path, monkeypatch):
    from deltatune.objectives.next_token import NextToken

    def full(self, outputs, batch, *, progress=0.0):
        if progress > 0.3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs.logits.sum() * 0.001

    monkeypatch.setattr(NextToken, "total", full)
    with pytest.raises(WorkError, match=r"training\.batch_size=3 and max_length=32: halve"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)


def test_run_leaves_nothing_half_written_when_the_disk_is_full(llama, pairs, tmp_path, monkeypatch):
    from deltatune.bridges import carriers

    def full(self, model, folder, reload_base):
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(carriers._Adapter, "save", full)
    with pytest.raises(WorkError, match=r"No space left on device.*--resume"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)
    assert not (tmp_path / "run" / "adapter").exists()
    monkeypatch.undo()
    assert finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS, resume=True).after


def test_sigterm_saves_the_step_and_the_run_goes_on_later(llama, pairs, tmp_path, monkeypatch):
    whole = finetune(llama, pairs, output=tmp_path / "whole", assignments=SETTINGS)
    from deltatune.bridges.progress import Progress

    def terminate(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "on_substep_end", terminate, raising=False)
    with pytest.raises(Interrupted, match="--resume"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)
    monkeypatch.undo()
    assert len(_losses(tmp_path / "run")) == 3
    again = finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS, resume=True)
    wanted, given = _adapter(whole.folder), _adapter(again.folder)
    assert all(torch.equal(wanted[name], given[name]) for name in wanted)


def test_a_killed_process_resumes_from_its_last_checkpoint(llama, pairs, tmp_path):
    folder = tmp_path / "run"
    fields = [f"--set={key}={value}" for key, value in {**SETTINGS, "training.epochs": 40}.items()]
    command = [
        sys.executable,
        "-m",
        "deltatune.cli",
        "train",
        f"--model={llama}",
        f"--data={pairs}",
    ]
    command += [f"--output={folder}", *fields]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(folder.glob("checkpoints/checkpoint-5*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (folder / "adapter").exists()
    ended = subprocess.run(
        [*command, "--resume", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["folder"] == str(folder)


def test_prepare_and_attach_serve_a_trainer_of_the_user_s_own(tiny, tmp_path):
    from transformers import Trainer, TrainingArguments

    recipe = named("efficientft", {"ratio": 4, "value_learning_rate": 1e-3, "delta.rank": 2})
    model = recipe.prepare(tiny("llama", "causal_lm"))
    rows = [{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]} for _ in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = recipe.attach(Trainer(model=model, args=arguments, train_dataset=rows))
    trainer.train()
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {1e-3, 2.5e-4}


@pytest.mark.parametrize(
    ("option", "value"), [("base_dropout", True), ("groups_by_length", False), ("seed", 1)]
)
def test_training_option_changes_the_run(tmp_path, option, value):
    dropout = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    bert = model_folder(tmp_path / "bert", "bert", "base", **dropout)
    rows = [{"text": "the cat " * (1 + i % 7), "label": "ab"[i % 2]} for i in range(40)]
    settings = {"training.steps": 4, "training.batch_size": 4}
    plain = finetune(bert, rows, output=tmp_path / "plain", assignments=settings)
    settings = {**settings, f"training.{option}": value}
    changed = finetune(bert, rows, output=tmp_path / "changed", assignments=settings)
    assert _losses(plain.folder) != _losses(changed.folder)
    assert set(plain.before) == set(changed.before)

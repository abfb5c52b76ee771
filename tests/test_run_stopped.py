"""The main job, stopped: resumed to the last bit, and never a half-written folder."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from deltatune.errors import Diverged, InputError, Interrupted, WorkError
from deltatune.run import finetune
from tests.folders import completions, model_folder, rows_file
from tests.runs import SETTINGS, adapter_of, losses_of


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
    wanted, given = adapter_of(whole.folder), adapter_of(again.folder)
    assert wanted.keys() == given.keys()
    assert all(torch.equal(wanted[name], given[name]) for name in wanted)
    assert losses_of(whole.folder) == losses_of(again.folder)
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


def test_run_stops_at_once_when_the_loss_is_not_a_number(llama, pairs, tmp_path, monkeypatch):
    from deltatune.objectives.next_token import NextToken

    score = NextToken.score

    def broken(self, logits, wanted, *, progress=0.0):
        total, slope = score(self, logits, wanted)
        return total * (float("nan") if progress > 0.3 else 1.0), slope

    monkeypatch.setattr(NextToken, "score", broken)
    with pytest.raises(Diverged, match="the loss of step 4 is nan: lower the value learning rate"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)
    assert not (tmp_path / "run" / "adapter").exists()
    assert len(losses_of(tmp_path / "run")) == 3


def test_run_stops_before_a_gradient_that_is_not_a_number_spoils_it(
    llama, pairs, tmp_path, monkeypatch
):
    from deltatune.objectives.next_token import NextToken

    score = NextToken.score

    def broken(self, logits, wanted, *, progress=0.0):
        total, slope = score(self, logits, wanted)
        return total, slope * (float("nan") if progress > 0.3 else 1.0)

    monkeypatch.setattr(NextToken, "score", broken)
    with pytest.raises(Diverged, match="the gradient of step 4 has the norm nan: lower"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)


def test_running_out_of_memory_names_the_batch_size(llama, pairs, tmp_path, monkeypatch):
    from deltatune.objectives.next_token import NextToken

    score = NextToken.score

    def full(self, logits, wanted, *, progress=0.0):
        if progress > 0.3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(self, logits, wanted)

    monkeypatch.setattr(NextToken, "score", full)
    with pytest.raises(WorkError, match=r"training\.batch_size=3 and max_length=32: halve"):
        finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS)


def test_run_leaves_nothing_half_written_when_the_disk_is_full(llama, pairs, tmp_path, monkeypatch):
    from deltatune.bridges.peft_host import AdapterCarrier

    def full(self, model, folder, reload_base):
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AdapterCarrier, "save", full)
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
    assert len(losses_of(tmp_path / "run")) == 3
    again = finetune(llama, pairs, output=tmp_path / "run", assignments=SETTINGS, resume=True)
    wanted, given = adapter_of(whole.folder), adapter_of(again.folder)
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


def test_run_that_ends_as_a_constant_predictor_is_called_one(tmp_path):
    bert = model_folder(tmp_path / "bert", "bert", "base")
    rows = [{"text": "the cat", "label": "yes" if i % 4 else "no"} for i in range(80)]
    data = {"train": rows, "test": rows[:40]}
    settings = {"training.steps": 64, "training.epochs": 20, "training.batch_size": 16}
    with pytest.raises(Diverged, match=r"the same class.* constant gives 0\.562: lower"):
        finetune(bert, data, output=tmp_path / "run", assignments=settings)
    # The result stays to be looked at.
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "the best constant gives 0.562" in result["collapse"]
    short = {**settings, "training.steps": 20}
    assert finetune(bert, data, output=tmp_path / "short", assignments=short).after

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Trainer, TrainerCallback

from deltatune import sites as places
from deltatune.bridges import state_files
from deltatune.bridges.checkpoints import last_complete_checkpoint, with_exact_checkpoints
from deltatune.bridges.in_place import merged_state, prepare_in_place
from deltatune.bridges.peft_config import delta_config
from deltatune.bridges.trainer import with_objective
from deltatune.deltas.entries import EntryValues
from deltatune.errors import InputError, NotComposable, WorkError
from deltatune.part import Entries
from deltatune.sites import join
from deltatune.updates.ratios import Ratios
from tests.models import tiny
from tests.training import PEFT_ASKS_OLD_NAME, lora_llama, token_rows, trainer_of

pytestmark = PEFT_ASKS_OLD_NAME
EXACT = with_objective(with_exact_checkpoints(Trainer))
ROWS = token_rows(16)  # 8 micro-batches of 2, in threes: each epoch ends with a ragged one of 2


class StopInMicroBatch(TrainerCallback):
    """Dies within an optimizer step, after some of its micro-batches."""

    def __init__(self, *, after_steps: int) -> None:
        self.after_steps = after_steps

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after_steps:
            raise KeyboardInterrupt


def build(
    folder: Path, *, callbacks: Any = (), model: Any = None, update: Any = None, **changes: Any
) -> Any:
    trained, sites = model or lora_llama(dropout=0.1)
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 3,
        **changes,
    }
    return trainer_of(
        trained,
        sites,
        folder,
        rows=ROWS,
        trainer_class=EXACT,
        update=update or Ratios(roles={"value": 4.0}),
        weight_decay=0.1,
        callbacks=callbacks,
        **options,
    )


def outcome(trainer: Any) -> dict[str, Any]:
    """Return all that two runs must share, as comparable values."""
    trained = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    state = trainer.optimizer.state_dict()
    flat = {
        f"{i}.{key}": torch.as_tensor(value)
        for i, values in state["state"].items()
        for key, value in values.items()
    }
    logged = [(row["step"], row["loss"], row["learning_rate"]) for row in losses(trainer)]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]]
    return {"trained": trained, "state": flat, "logged": logged, "groups": groups}


def losses(trainer: Any) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def assert_bitwise_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first["logged"] == second["logged"]
    assert first["groups"] == second["groups"]
    for kind in ("trained", "state"):
        assert first[kind].keys() == second[kind].keys()
        for name, tensor in first[kind].items():
            assert torch.equal(tensor, second[kind][name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    trainer = build(tmp_path_factory.mktemp("whole"), save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 9
    return outcome(trainer)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_resume_equals_the_uninterrupted_run_to_the_last_bit(
    tmp_path: Path, uninterrupted: dict[str, Any], steps: int
) -> None:
    # 3 steps an epoch: 3 lies on the border of two epochs, 5 is followed by a ragged step.
    stopped = build(tmp_path, callbacks=[StopInMicroBatch(after_steps=steps)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    last = last_complete_checkpoint(tmp_path)
    assert last is not None
    assert last.name == f"checkpoint-{steps}"
    torch.manual_seed(99)  # nothing of the new process may matter
    resumed = build(tmp_path)
    resumed.train(resume_from_checkpoint=str(last))
    assert_bitwise_equal(outcome(resumed), uninterrupted)


def test_resume_is_exact_when_checkpoints_are_made_at_the_end_of_epochs(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    stopped = build(tmp_path, save_strategy="epoch", callbacks=[StopInMicroBatch(after_steps=7)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = build(tmp_path, save_strategy="epoch")
    resumed.train(resume_from_checkpoint=True)
    assert_bitwise_equal(outcome(resumed), uninterrupted)


def in_place_model() -> tuple[Any, Any]:
    model = tiny("gpt2", "causal_lm", resid_pdrop=0.1)
    sites = places.of(model)
    selected = join(sites, sites.with_roles("query", "value"))
    return prepare_in_place(model, sites, selected), sites


def test_resume_is_exact_when_rows_of_fused_weights_train_in_place(tmp_path: Path) -> None:
    whole = build(tmp_path / "whole", model=in_place_model(), save_strategy="no", max_steps=4)
    whole.train()
    stopped = build(
        tmp_path, model=in_place_model(), callbacks=[StopInMicroBatch(after_steps=2)], max_steps=4
    )
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = build(tmp_path, model=in_place_model(), max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert_bitwise_equal(outcome(resumed), outcome(whole))
    # The model beside the exact state is a plain one, which plain transformers can load.
    saved = type(resumed.model).from_pretrained(tmp_path / "checkpoint-4")
    for name, tensor in merged_state(resumed.model).items():
        assert torch.equal(saved.state_dict()[name], tensor), name


def entries_model() -> tuple[Any, Any]:
    base = tiny("llama", "causal_lm", attention_dropout=0.1)
    sites = places.of(base)
    chosen = torch.randperm(32 * 16, generator=torch.Generator().manual_seed(1))[:300]
    selection = {site.weight: Entries(chosen) for site in sites.with_roles("value")}
    config = delta_config(EntryValues(), sites, selection, seed=0)
    return peft.get_peft_model(base, config), sites


def test_resume_is_exact_for_a_delta_of_ours_with_index_buffers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "update": Ratios()}
    whole = build(tmp_path / "whole", model=entries_model(), save_strategy="no", **options)
    whole.train()
    stopper = StopInMicroBatch(after_steps=2)
    stopped = build(tmp_path, model=entries_model(), callbacks=[stopper], **options)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = build(tmp_path, model=entries_model(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert_bitwise_equal(outcome(resumed), outcome(whole))
    saved = state_files.read_tensors(tmp_path / "checkpoint-4" / "trained.safetensors")
    indices = [t for n, t in saved.items() if n.endswith("indices")]
    assert [t.dtype for t in indices] == [torch.int64] * 2


def test_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    build(tmp_path, max_steps=1).train()
    names = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert {"optimizer.safetensors", "scheduler.json", "rng_state.json"} <= names
    endings = {Path(name).suffix for name in names}
    assert endings <= {".json", ".safetensors", ".md"}


def test_checkpoint_keeps_optimizer_state_by_parameter_name(tmp_path: Path) -> None:
    trainer = build(tmp_path, max_steps=1)
    trainer.train()
    saved = state_files.read_state(tmp_path / "checkpoint-1", "optimizer")
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(saved["state"]) == trained
    assert [group["label"] for group in saved["groups"]] == ["query", "value"]


def test_checkpoint_leaves_nothing_behind_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(tmp_path)
    write = state_files.write_tensors

    def fail_at_second_step(path: Path, tensors: Any) -> None:
        if trainer.state.global_step == 2 and path.name == "trained.safetensors":
            raise OSError(28, "No space left on device")
        write(path, tensors)

    monkeypatch.setattr("deltatune.bridges.checkpoints.write_tensors", fail_at_second_step)
    with pytest.raises(WorkError, match=r"step 2 .*No space left.*resume from checkpoint-1$"):
        trainer.train()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-1"]
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_checkpoint_is_not_seen_when_the_process_dies_before_the_last_file(tmp_path: Path) -> None:
    build(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "deltatune_checkpoint.json").unlink()
    (tmp_path / ".incomplete" / "checkpoint-3").mkdir(parents=True)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    with pytest.raises(InputError, match=r"no complete checkpoint"):
        build(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(InputError, match=r"start without resuming"):
        build(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_checkpoints_beyond_the_limit_are_deleted_oldest_first(tmp_path: Path) -> None:
    build(tmp_path, max_steps=5, save_total_limit=2).train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-5"]


def test_best_checkpoint_is_kept_and_recorded_under_its_final_name(tmp_path: Path) -> None:
    build(
        tmp_path,
        max_steps=4,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="loss",
        greater_is_better=True,  # the first is the worst, so it is the one to keep
        evaluated=ROWS[:4],
    ).train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")
    assert state["best_global_step"] == 1


def test_resume_is_refused_by_name_when_another_set_of_tensors_trains(tmp_path: Path) -> None:
    build(tmp_path, max_steps=1).train()
    model, sites = lora_llama()
    name, frozen = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
    frozen.requires_grad_(False)
    with pytest.raises(InputError, match=name):
        build(tmp_path, model=(model, sites)).train(resume_from_checkpoint=True)


def test_resume_is_refused_when_the_groups_differ(tmp_path: Path) -> None:
    build(tmp_path, max_steps=1).train()
    other = build(tmp_path)
    other.optimizer_cls_and_kwargs = None  # Trainer's own two groups instead of ours
    with pytest.raises(InputError, match=r"was in optimizer group 1 and is in group 0 now"):
        other.train(resume_from_checkpoint=True)


def test_state_files_bring_back_every_kind_to_the_last_bit(tmp_path: Path) -> None:
    value = {
        "numbers": (1, 2.5, 0.1 + 0.2, float("inf"), None, True, "text"),
        7: [torch.tensor([257], dtype=torch.int64), {"nested": torch.tensor(0.1)}],
        "bfloat16": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    state_files.write_state(tmp_path, "state", value)
    read = state_files.read_state(tmp_path, "state")
    assert read["numbers"] == value["numbers"]
    assert read[7][0].dtype == torch.int64
    assert read[7][0].item() == 257
    assert torch.equal(read[7][1]["nested"], torch.tensor(0.1))
    assert read["bfloat16"].dtype == torch.bfloat16


def test_state_files_refuse_objects_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"/key is a object"):
        state_files.write_state(tmp_path, "state", {"key": object()})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json' is broken"):
        state_files.read_state(tmp_path, "broken")
    with pytest.raises(InputError, match=r"has no missing\.json"):
        state_files.read_state(tmp_path, "missing")


def test_push_to_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, *args, **kwargs: None)
    with pytest.raises(NotComposable, match=r"push_to_hub"):
        build(tmp_path, push_to_hub=True)

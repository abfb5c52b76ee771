"""Two gloo processes on the CPU give what one process gives."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from torch import Tensor
from transformers import Trainer, TrainerCallback

from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.checkpoints import last_complete_checkpoint, with_exact_checkpoints
from deltatune.bridges.trainer import with_objective
from deltatune.errors import Interrupted
from deltatune.updates import alternate as turns
from deltatune.updates.ratios import Ratios
from tests import sharded_runs
from tests.test_bridges_callback import Alternate
from tests.training import PEFT_ASKS_OLD_NAME, lora_llama, token_rows, trainer_of

pytestmark = [PEFT_ASKS_OLD_NAME, pytest.mark.distributed]
ROWS = token_rows(12)


def _enter(rank: int, folder: Path) -> None:
    """Set this process up as one of two, do every task, and leave the group."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "localhost", "WORLD_SIZE": "2"}
    os.environ.update({**address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        for task in TASKS:
            (folder / task.__name__).mkdir(exist_ok=True)
            task(rank, folder / task.__name__)
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every task left in both processes, by its name; one start serves all of them."""
    folder = tmp_path_factory.mktemp("two")
    context = processes.start_processes(
        _enter, args=(folder,), nprocs=2, start_method="spawn", join=False
    )
    assert context is not None
    while not context.join(timeout=120):
        pass
    return {
        task.__name__: [
            torch.load(folder / task.__name__ / f"{rank}.pt", weights_only=True) for rank in (0, 1)
        ]
        for task in TASKS
    }


def trainer_in(folder: Path, *, update: Any = None, **changes: Any) -> Any:
    model, sites = lora_llama(dropout=0.1 if changes.pop("dropout", False) else 0.0)
    update = update or Ratios()
    trainer = trainer_of(
        model,
        sites,
        folder,
        rows=ROWS,
        update=update,
        trainer_class=with_objective(with_exact_checkpoints(Trainer)),
        **changes,
    )
    options: Any = {"check_movement_after": 0}
    trainer.add_callback(DeltaCallback(trainer, update=update, sites=sites, **options))
    return trainer


def trained(trainer: Any) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}


def keep(rank: int, folder: Path, trainer: Any) -> None:
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    torch.save({"trained": trained(trainer), "losses": logged}, folder / f"{rank}.pt")


def assert_ranks_agree(results: list[Any]) -> None:
    for name, weight in results[0]["trained"].items():
        assert torch.equal(weight, results[1]["trained"][name]), name


def train(rank: int, folder: Path) -> None:
    # 2 processes of 2 rows, twice: the 8 rows of a step have different numbers of labels.
    trainer = trainer_in(folder, optimizer="sgd", gradient_accumulation_steps=2, max_grad_norm=0)
    trainer.train()
    keep(rank, folder, trainer)


def alternate(rank: int, folder: Path) -> None:
    trainer = trainer_in(folder, update=Alternate(), num_train_epochs=2)
    trainer.train()
    keep(rank, folder, trainer)


TURNS = turns.Alternate(
    phases=(
        turns.Phase(parts=("up",), steps=1),
        turns.Phase(parts=("down",), steps=1, clipped_apart=True),
    ),
    until=3,
    then=("up", "down"),
)
BY_TURNS: dict[str, Any] = {
    "update": TURNS,
    "optimizer": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 0.05,
    "max_steps": 5,
}


def take_turns(rank: int, folder: Path) -> None:
    trainer = trainer_in(folder, gradient_accumulation_steps=2, **BY_TURNS)
    trainer.train()
    keep(rank, folder, trainer)


class SignalInOneProcess(TrainerCallback):
    """Sends a signal to the second process only, within its second step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 1 and state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)


OPTIONS: dict[str, Any] = {"dropout": True, "num_train_epochs": 2}


def stop_and_resume(rank: int, folder: Path) -> None:
    stopped = trainer_in(folder, callbacks=[SignalInOneProcess()], **OPTIONS)
    with pytest.raises(Interrupted):
        stopped.train()
    assert stopped.state.global_step == 2
    resumed = trainer_in(folder, **OPTIONS)
    resumed.train(resume_from_checkpoint=str(last_complete_checkpoint(folder)))
    keep(rank, folder, resumed)


def train_whole(rank: int, folder: Path) -> None:
    trainer = trainer_in(folder, **OPTIONS)
    trainer.train()
    keep(rank, folder, trainer)


TASKS: tuple[Callable[[int, Path], None], ...] = (
    train,
    alternate,
    take_turns,
    stop_and_resume,
    train_whole,
    sharded_runs.watch_turns,
    sharded_runs.train_spectral,
    # Last: from here on accelerate believes that every model of these processes is sharded.
    sharded_runs.watch_pieces,
    sharded_runs.clip_pieces,
    sharded_runs.train_spectral_pieces,
)


def test_two_processes_train_as_one(results: dict[str, list[Any]], tmp_path: Path) -> None:
    two = results["train"]
    assert_ranks_agree(two)
    # The same 8 rows a step in one process; SGD, whose step is the gradient itself.
    one = trainer_in(tmp_path, optimizer="sgd", per_device_train_batch_size=8, max_grad_norm=0)
    one.train()
    for name, weight in trained(one).items():
        # Two sums of sums in another order, in float32.
        torch.testing.assert_close(two[0]["trained"][name], weight, rtol=1e-5, atol=1e-7)
    logged = [row["loss"] for row in one.state.log_history if "loss" in row]
    assert two[0]["losses"] == pytest.approx(logged, rel=1e-5)


def test_ranks_stay_alike_when_who_trains_changes(results: dict[str, list[Any]]) -> None:
    assert_ranks_agree(results["alternate"])


def test_two_processes_take_turns_and_clip_as_one(
    results: dict[str, list[Any]], tmp_path: Path
) -> None:
    two = results["take_turns"]
    assert_ranks_agree(two)
    one = trainer_in(tmp_path, per_device_train_batch_size=8, **BY_TURNS)
    start = {name: weight.clone() for name, weight in trained(one).items()}
    one.train()
    for name, weight in trained(one).items():
        assert not torch.equal(weight, start[name])
        # Two sums of sums in another order, in float32, over five steps.
        torch.testing.assert_close(two[0]["trained"][name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", ["watch_turns", "watch_pieces"])
def test_resting_part_has_no_gradient_and_keeps_values_and_moments_in_two_processes(
    results: dict[str, list[Any]], task: str
) -> None:
    for found in results[task]:
        assert found["is_sharded"] == (task == "watch_pieces")
        assert found["graded"] == sharded_runs.ORDER
        assert found["moved"] == sharded_runs.ORDER


def test_sharded_parts_take_turns_and_clip_as_whole_ones_do(
    results: dict[str, list[Any]], tmp_path: Path
) -> None:
    one = sharded_runs.trainer_in(tmp_path, per_device_train_batch_size=8, **sharded_runs.CLIPPED)
    one.train()
    whole = sharded_runs.trained(one)
    for found in results["clip_pieces"]:
        assert found["trained"].keys() == whole.keys()
        for name, weight in whole.items():
            # Two sums of sums in another order, in float32, over six steps.
            torch.testing.assert_close(found["trained"][name], weight, rtol=1e-5, atol=1e-6)


def test_two_processes_stop_together_and_resume_to_the_last_bit(
    results: dict[str, list[Any]],
) -> None:
    resumed, whole = results["stop_and_resume"], results["train_whole"]
    assert_ranks_agree(resumed)
    assert resumed[0]["losses"] == whole[0]["losses"]
    for name, weight in whole[0]["trained"].items():
        assert torch.equal(weight, resumed[0]["trained"][name]), name


@pytest.mark.parametrize("task", ["train_spectral", "train_spectral_pieces"])
def test_two_processes_move_coefficients_and_locations_as_one(
    task: str, results: dict[str, list[Any]], tmp_path: Path
) -> None:
    two = results[task]
    assert_ranks_agree(two)
    steps = sharded_runs.SPECTRAL_STEPS
    one = sharded_runs.trainer_in(
        tmp_path, sharded_runs.SPECTRAL, per_device_train_batch_size=4, **steps
    )
    start = {name: weight.clone() for name, weight in sharded_runs.trained(one).items()}
    one.train()
    moved = sharded_runs.trained(one)
    assert all(not torch.equal(weight, start[name]) for name, weight in moved.items())
    for name, weight in moved.items():
        # Two sums of sums in another order, in float32, over six steps.
        torch.testing.assert_close(two[0]["trained"][name], weight, rtol=1e-4, atol=1e-6)


def test_a_sharded_cosine_delta_tells_its_cells_and_loads_its_own_state(
    results: dict[str, list[Any]],
) -> None:
    for rank in results["train_spectral_pieces"]:
        for name, locations in rank["trained"].items():
            if name.endswith("locations"):
                assert locations.shape == (2, 9)
        assert all(cells.shape == (2, 9) for cells in rank["cells"])
        assert all(figures["coefficients"] == 9 for figures in rank["figures"])

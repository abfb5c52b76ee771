"""Parts of a delta that take turns, in the real Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.checkpoints import with_exact_checkpoints
from deltatune.bridges.names import trained_parameters
from deltatune.bridges.optimizer import attach_optimizer
from deltatune.bridges.optimizer_state import parameter_names
from deltatune.bridges.trainer import with_objective
from deltatune.bridges.turns import resting_note
from deltatune.errors import NotComposable, WorkError
from deltatune.updates.alternate import Alternate, Phase
from deltatune.updates.ratios import Ratios
from tests.test_bridges_checkpoints import StopInMicroBatch, assert_bitwise_equal, outcome
from tests.training import PEFT_ASKS_OLD_NAME, arguments, lora_llama, token_rows, trainer_of

pytestmark = PEFT_ASKS_OLD_NAME
ROWS = token_rows(16)
UP, DOWN = Phase(parts=("up",), steps=2), Phase(parts=("down",), steps=1)
TURNS = Alternate(phases=(UP, DOWN), until=7, then=("up",))
ORDER = "uuduuduuuu"  # of the first 10 steps
EXACT = with_objective(with_exact_checkpoints(Trainer))


def made(folder: Path, update: Any = TURNS, options: Any = None, **changes: Any) -> Any:
    model, sites = lora_llama(dropout=changes.pop("dropout", 0.0))
    settings = {"rows": ROWS, "num_train_epochs": 10, **changes}
    trainer = trainer_of(model, sites, folder, update=update, **settings)
    trainer.add_callback(DeltaCallback(trainer, update=update, sites=sites, **(options or {})))
    return trainer


class KeepAll(TrainerCallback):
    """Keeps values and moments of everything that trains, after each step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.steps = [self._values()]

    def _values(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {f"{n}:value": p.detach().clone() for n, p in named if "lora_" in n}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = self._values()
        optimizer = kwargs["optimizer"]
        names = parameter_names(self.model, optimizer)
        for number, own in optimizer.state_dict()["state"].items():
            kept |= {f"{names[number]}:{key}": torch.as_tensor(v).clone() for key, v in own.items()}
        self.steps.append(kept)


@pytest.mark.parametrize("how", ["plain", "accumulated", "computed twice"])
def test_part_that_rests_keeps_values_and_moments_to_the_last_bit(tmp_path: Path, how: str) -> None:
    changes = {"gradient_accumulation_steps": 4} if how == "accumulated" else {}
    trainer = made(tmp_path, weight_decay=0.1, max_steps=10, **changes)
    if how == "computed twice":  # under the name that all versions know, deprecated in the last
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        assert trainer.model.is_gradient_checkpointing
    keep = KeepAll(trainer.model)
    trainer.add_callback(keep)
    trainer.train()
    part = {"u": "lora_B", "d": "lora_A"}
    for step, letter in enumerate(ORDER):
        before, after = keep.steps[step], keep.steps[step + 1]
        for name, tensor in after.items():
            # The step before its first turn a part has no moments.
            same = name in before and torch.equal(tensor, before[name])
            assert same == (part[letter] not in name), (step, name)
    assert {name.rpartition(":")[2] for name in keep.steps[-1]} == {
        "value",
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


def resumable(folder: Path, *, callbacks: Any = (), **changes: Any) -> Any:
    return made(
        folder,
        Alternate(phases=(UP, DOWN), until=0.7, then=("up",)),  # of 9 steps: 6
        trainer_class=EXACT,
        callbacks=callbacks,
        dropout=0.1,
        weight_decay=0.1,
        gradient_accumulation_steps=3,
        num_train_epochs=3,
        **{"save_strategy": "steps", "save_steps": 1, **changes},
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    trainer = resumable(tmp_path_factory.mktemp("whole"), save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 9
    return outcome(trainer)


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_resume_in_the_middle_of_a_cycle_is_exact(
    tmp_path: Path, uninterrupted: dict[str, Any], steps: int
) -> None:
    # After 1 within the turn of up, after 2 between the turns, after 6 at the end of the cycles.
    stopped = resumable(tmp_path, callbacks=[StopInMicroBatch(after_steps=steps)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = resumable(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps}"))
    assert_bitwise_equal(outcome(resumed), uninterrupted)


def test_all_train_again_after_a_run_that_failed(tmp_path: Path) -> None:
    trainer = resumable(tmp_path, callbacks=[StopInMicroBatch(after_steps=2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    adapters = [p for n, p in trainer.model.named_parameters() if "lora_" in n]
    assert len(adapters) == 8
    assert all(parameter.requires_grad for parameter in adapters)


def moved(folder: Path, update: Any, max_norm: float, **changes: Any) -> tuple[Any, float]:
    """Return what one step of SGD at rate 1 takes off each tensor, and the norm that is logged."""
    trainer = made(
        folder,
        update,
        {"check_movement_after": 0},
        optimizer="sgd",
        learning_rate=1.0,
        max_steps=1,
        max_grad_norm=max_norm,
        **changes,
    )
    generator = torch.Generator().manual_seed(0)
    before = {}
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:  # up factors of 0 would leave the down factors no gradient
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
                before[name] = parameter.clone()
    trainer.train()
    after = dict(trainer.model.named_parameters())
    logged = next(row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row)
    return {name: value - after[name].detach() for name, value in before.items()}, logged


def norm(gradients: dict[str, Tensor], part: str = "") -> float:
    return float(torch.cat([g.flatten() for n, g in gradients.items() if part in n]).norm())


APART = Alternate(
    phases=(Phase(parts=("up",), steps=1), Phase(parts=("down",), steps=1, clipped_apart=True)),
    until=0,
    then=("up", "down"),
)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_gradients_clipped_apart_have_norms_of_their_own(
    tmp_path: Path, micro_batches: int
) -> None:
    changes = {"gradient_accumulation_steps": micro_batches}
    whole, logged = moved(tmp_path, APART, 0.0, **changes)
    norms = {part: norm(whole, part) for part in ("lora_A", "lora_B")}
    assert logged == pytest.approx(norm(whole), rel=1e-5)
    small, large = sorted(norms.values())
    assert small * 1.2 < large  # else the bound between them would prove nothing
    bound = (small * large) ** 0.5
    clipped, logged = moved(tmp_path, APART, bound, **changes)
    assert logged == pytest.approx(norm(whole), rel=1e-5)  # before clipping, of all
    for part, own in norms.items():
        scale = min(1.0, bound / own)
        for name in (name for name in whole if part in name):
            # Weights near 1/8 are subtracted, which leaves 1e-8 of an error.
            torch.testing.assert_close(clipped[name], scale * whole[name], rtol=1e-4, atol=3e-8)


def test_gradients_that_nobody_clips_apart_share_one_norm(tmp_path: Path) -> None:
    together = Alternate(phases=(UP, DOWN), until=0, then=("up", "down"))
    whole, _ = moved(tmp_path, together, 0.0)
    clipped, _ = moved(tmp_path, together, norm(whole) / 2)
    assert norm(clipped) == pytest.approx(norm(whole) / 2, rel=1e-4)
    assert norm(clipped, "lora_A") == pytest.approx(norm(whole, "lora_A") / 2, rel=1e-4)


def test_clipping_apart_needs_a_trainer_that_can(tmp_path: Path) -> None:
    model, sites = lora_llama()
    bare = Trainer(model, arguments(tmp_path))
    attach_optimizer(bare, update=APART, sites=sites, learning_rate=1e-2)
    with pytest.raises(NotComposable, match=r"gradients of down apart, which a plain Trainer"):
        bare.create_optimizer()


def test_part_that_never_moves_in_its_turns_is_found_at_the_end(tmp_path: Path) -> None:
    trainer = made(tmp_path, max_steps=8)
    layer = trainer.model.base_model.model.model.layers[0].self_attn.q_proj

    class Hold(TrainerCallback):
        """Undoes every step of one tensor."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            with torch.no_grad():
                layer.lora_B["default"].weight.zero_()

    trainer.add_callback(Hold())
    with pytest.raises(WorkError, match=r"layers\.0\.self_attn\.q_proj\.lora_B.*did not move"):
        trainer.train()
    assert trainer.state.global_step == 8


@pytest.mark.parametrize(
    ("update", "steps"),
    [
        # Down has no gradient before up has moved: its first turn may leave it where it was.
        (Alternate(phases=(Phase(parts=("down",), steps=6), UP)), 8),
        (Alternate(phases=(Phase(parts=("up",), steps=8), DOWN)), 6),  # down has no turn
    ],
)
def test_part_that_could_not_move_yet_is_not_accused(
    tmp_path: Path, update: Alternate, steps: int
) -> None:
    trainer = made(tmp_path, update, max_steps=steps)
    trainer.train()
    assert trainer.state.global_step == steps


@pytest.mark.parametrize("enabled", ["is_deepspeed_enabled", "wrapped"])
def test_turns_are_refused_where_tensors_are_laid_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: str
) -> None:
    trainer = made(tmp_path)
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, DeltaCallback)]
    if enabled == "wrapped":
        monkeypatch.setattr("deltatune.bridges.callback.FullyShardedDataParallel", nn.Linear)
        trainer.model_wrapped = nn.Linear(1, 1)
    else:
        trainer.is_deepspeed_enabled = True
    with pytest.raises(NotComposable, match=r"DeepSpeed and FSDP1 cannot follow: train with DDP"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_note_names_the_parts_that_have_no_turn() -> None:
    parameters = trained_parameters(*lora_llama())
    early = Alternate(phases=(Phase(parts=("up",), steps=10), DOWN), until=0.1, then=("up",))
    assert resting_note(early, parameters, 40).startswith(
        "down of the delta train in none of the 40 steps of this run, as the update Alternate has"
    )
    assert resting_note(early, parameters, 110) == ""  # 11 steps of turns: one for down
    assert resting_note(Ratios(), parameters, 40) == ""

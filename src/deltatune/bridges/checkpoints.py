"""Exact checkpoints: what a Trainer resumes from, to the last bit, and never from half of one.

A checkpoint is put together in a staging folder and renamed when it is whole. It holds everything
that decides the rest of the run: trained tensors and buffers by name, the optimizer's state by
parameter name, the schedule, the random states. No file of it is a pickle.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils import parametrize
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from deltatune.bridges.in_place import merged_state
from deltatune.bridges.optimizer_state import load_optimizer_state, named_state, parameter_names
from deltatune.bridges.random_states import random_states, restore_random_states
from deltatune.bridges.state_files import (
    copy_into,
    has_state,
    read_state,
    read_tensors,
    write_state,
    write_tensors,
)
from deltatune.errors import InputError, NotComposable, WorkError

__all__ = ["ExactCheckpoints", "last_complete_checkpoint", "with_exact_checkpoints"]

MANIFEST = "deltatune_checkpoint.json"
STAGING = ".incomplete"
TRAINED = "trained.safetensors"
SomeTrainer = TypeVar("SomeTrainer", bound=Trainer)


def last_complete_checkpoint(folder: Path | str) -> Path | None:
    """Return the newest checkpoint that was written whole, or None.

    Args:
        folder: output folder of a trainer; need not exist.
    """
    complete = _complete(Path(folder))
    return complete[-1] if complete else None


def with_exact_checkpoints(trainer_class: type[SomeTrainer]) -> type[SomeTrainer]:
    """Return a subclass of any Trainer class that writes and reads exact checkpoints."""
    return type(f"Exact{trainer_class.__name__}", (ExactCheckpoints, trainer_class), {})


class ExactCheckpoints(Trainer):
    """A mixin for Trainer classes: `class Mine(ExactCheckpoints, SFTTrainer)`.

    Under FSDP and DeepSpeed, which shard these states, model and optimizer are left to
    transformers; staging and the manifest stay.
    """

    _staging: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the trainer.

        Raises:
            NotComposable: `push_to_hub`, which uploads a checkpoint while it is still staged.
        """
        super().__init__(*args, **kwargs)
        if self.args.push_to_hub:
            raise NotComposable(
                "exact checkpoints and push_to_hub cannot act together: push the result after "
                "training, with push_to_hub() of the model"
            )

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, from a complete checkpoint if asked to resume.

        Args:
            resume_from_checkpoint: a path, or True for the newest complete one.
            args: as for `Trainer.train`.
            kwargs: as for `Trainer.train`.

        Raises:
            InputError: there is no complete checkpoint.
        """
        checkpoint = _to_resume(resume_from_checkpoint, Path(self.args.output_dir or ""))
        return super().train(checkpoint, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Where steps are bounded, Trainer would take one more from a checkpoint of the last step.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _parts(self) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        """Return model, optimizer and schedule as they are now."""
        live: Any = self
        return live.model, live.optimizer, live.lr_scheduler

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        name = _name(self.state.global_step)
        with self._staged(folder) as staging:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._complete_checkpoint(staging / name, folder / name)
                self._rotate(folder, staging)
            self.accelerator.wait_for_everyone()

    @contextmanager
    def _staged(self, folder: Path) -> Iterator[Path]:
        """Send everything that is saved to a staging folder, which is empty before and gone after.

        Raises:
            WorkError: writing failed, for example because the disk is full.
        """
        staging = folder / STAGING
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            yield staging
        except (OSError, SafetensorError) as error:
            last = last_complete_checkpoint(folder)
            raise WorkError(
                f"the checkpoint of step {self.state.global_step} could not be written to "
                f"{str(folder)!r}: {error}; make room and resume from "
                f"{last.name if last else 'the start'}"
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _complete_checkpoint(self, staged: Path, final: Path) -> None:
        """Write what comes last, then give the checkpoint its name."""
        best = self.state.best_global_step
        if best and (best == self.state.global_step or (final.parent / _name(best)).is_dir()):
            # Trainer looked for it in the staging folder.
            self.state.best_model_checkpoint = str(final.parent / _name(best))
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        manifest = {"format": 1, "step": self.state.global_step}
        (staged / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        if final.exists():
            final.rename(staged.parent / f"replaced-{final.name}")
        staged.rename(final)

    def _rotate(self, folder: Path, staging: Path) -> None:
        """Delete the oldest checkpoints beyond `save_total_limit`, but never the best or the last.

        They are moved away first: a process that dies while it deletes leaves no half of one.
        """
        limit = self.args.save_total_limit
        if not limit or limit <= 0:
            return
        complete = _complete(folder)
        kept = {complete[-1], Path(self.state.best_model_checkpoint or complete[-1])}
        surplus = len(complete) - max(limit, len(kept))
        for path in [path for path in complete if path not in kept][: max(surplus, 0)]:
            path.rename(staging / path.name)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model = self._parts()[0]
        if state_dict is None and _is_parametrized(model):
            state_dict = merged_state(model)
        super()._save(output_dir, state_dict)
        # The one pickle that Trainer adds to every saved model.
        (Path(output_dir or self.args.output_dir or "") / TRAINING_ARGS_NAME).unlink(
            missing_ok=True
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            folder, (model, optimizer, scheduler) = Path(output_dir), self._parts()
            names = parameter_names(model, optimizer)
            write_state(folder, "optimizer", named_state(optimizer, names))
            write_state(folder, "scheduler", scheduler.state_dict())
            tensors = dict(model.named_parameters())
            trained = {name: tensors[name] for name in names.values()}
            write_tensors(folder / TRAINED, {**trained, **_persistent_buffers(model)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Without its own files transformers does nothing here, but trl's trainers add theirs.
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self._is_sharded:
            return
        model, optimizer, scheduler = self._parts()
        names = parameter_names(model, optimizer)
        load_optimizer_state(optimizer, names, read_state(Path(checkpoint), "optimizer"))
        scheduler.load_state_dict(read_state(Path(checkpoint), "scheduler"))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self._is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        model = model or self._parts()[0]
        tensors = read_tensors(Path(resume_from_checkpoint) / TRAINED)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        copy_into({**trained, **_persistent_buffers(model)}, tensors, str(resume_from_checkpoint))

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self.args.should_save:
            write_state(Path(output_dir), "scaler", scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and has_state(Path(checkpoint), "scaler"):
            self.accelerator.scaler.load_state_dict(read_state(Path(checkpoint), "scaler"))

    def _rng_stem(self) -> str:
        return "rng_state" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}"

    def _save_rng_state(self, output_dir: str) -> None:
        # Another process may still be about to make the folder.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_state(Path(output_dir), self._rng_stem(), random_states(self.args.device))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_random_states(read_state(Path(checkpoint), self._rng_stem()), self.args.device)


def _to_resume(given: str | Path | bool | None, folder: Path) -> str | None:
    if not given:
        return None
    checkpoint = last_complete_checkpoint(folder) if given is True else Path(given)
    if checkpoint is None:
        raise InputError(f"{str(folder)!r} has no complete checkpoint: start without resuming")
    if not (checkpoint / MANIFEST).is_file():
        raise InputError(
            f"{str(checkpoint)!r} is no complete checkpoint of deltatune: resume from another one, "
            f"or start anew"
        )
    return str(checkpoint)


def _name(step: int) -> str:
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def _complete(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest step first."""
    named = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        match = named.fullmatch(path.name)
        if match and (path / MANIFEST).is_file():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def _is_parametrized(model: nn.Module) -> bool:
    return any(parametrize.is_parametrized(module) for module in model.modules())


def _persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}

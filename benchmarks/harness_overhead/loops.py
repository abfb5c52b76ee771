"""The three loops of the race: the harness, a bare PyTorch loop, and peft in a Trainer."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich.console import Console
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from deltatune import planning
from deltatune.base import without_dropout
from deltatune.bridges import progress, session
from deltatune.plan import Plan

Begin = Callable[[], None]


class Beginning(TrainerCallback):
    """Says when a step of a Trainer begins."""

    def __init__(self, begin: Begin) -> None:
        """Call `begin` at each."""
        self.begin = begin

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say so."""
        self.begin()


def harness(plan: Plan, folder: Path, losses: list[float]) -> Callable[[Begin], None]:
    """Train as `finetune` does."""

    def loop(begin: Begin) -> None:
        folder.mkdir(parents=True)
        metrics = folder / "metrics.jsonl"
        watch = progress.Progress(Console(file=io.StringIO()), metrics, plan.meter)
        trainer = session.session(
            plan.model,
            plan.encoded.splits["train"],
            plan.collate,
            plan.recipe,
            plan.sites,
            objective=plan.objective,
            folder=folder / "checkpoints",
            meter=plan.meter,
            trains_base=plan.trains_base,
            constant_loss=plan.constant_loss,
            callbacks=[Beginning(begin), watch],
        )
        with watch, plan.meter:
            trainer.train()
        losses.extend(json.loads(line)["loss"] for line in metrics.read_text().splitlines())

    return loop


def order(plan: Plan) -> Any:
    training = plan.recipe.training
    examples = plan.encoded.splits["train"]
    return session.DataOrder(
        [len(ids) for ids in examples["input_ids"]],
        batch_size=training.batch_size,
        seed=training.seed,
        groups_by_length=training.groups_by_length,
    )


def scheduled(optimizer: torch.optim.Optimizer, plan: Plan) -> Any:
    training = plan.recipe.training
    warm_up = -(-training.steps * training.warmup // 1)
    return transformers.get_scheduler(training.schedule, optimizer, int(warm_up), training.steps)


def bare(plan: Plan, losses: list[float]) -> Callable[[Begin], None]:
    """Train in the loop that everybody writes."""
    examples, training = plan.encoded.splits["train"], plan.recipe.training
    parameters = [p for p in plan.model.parameters() if p.requires_grad]
    rate = plan.recipe.optimizer.learning_rate
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = scheduled(optimizer, plan)

    def loop(begin: Begin) -> None:
        model, steps, sampler = plan.model.train(), 0, order(plan)
        loader = torch.utils.data.DataLoader(
            examples,
            batch_size=training.batch_size,
            sampler=sampler,
            collate_fn=plan.collate,
        )
        while steps < training.steps:
            for batch in loader:
                if steps == training.steps:
                    break
                begin()
                loss = model(**batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, training.max_gradient_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(float(loss))
                steps += 1
            sampler.set_epoch(sampler.epoch + 1)

    return loop


def lora_of_peft(plan: Plan, head: tuple[str, ...]) -> nn.Module:
    """Return peft's LoRA on the same base, from the start values of the plan's model."""
    base = plan.reload_base()
    without_dropout(base)
    delta = plan.recipe.delta
    config = peft.LoraConfig(
        r=delta.rank,
        lora_alpha=delta.alpha,
        target_modules=[name.removesuffix(".weight") for name in plan.selection],
        modules_to_save=list(head) or None,
        task_type=planning.TASK_TYPES[plan.encoded.task],
    )
    model = peft.get_peft_model(base, config)
    mine = [p for n, p in plan.model.named_parameters() if n.endswith(".delta.down")]
    theirs = [p for n, p in model.named_parameters() if ".lora_A." in n]
    with torch.no_grad():
        for own, other in zip(mine, theirs, strict=True):
            other.copy_(own)
    return model


def peft_trainer(
    plan: Plan, head: tuple[str, ...], folder: Path, losses: list[float]
) -> Callable[[Begin], None]:
    """Train peft's LoRA with transformers' Trainer, which keeps its defaults."""

    class Ordered(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return order(plan)

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    model, training = lora_of_peft(plan, head), plan.recipe.training

    def loop(begin: Begin) -> None:
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=training.steps,
            per_device_train_batch_size=training.batch_size,
            learning_rate=plan.recipe.optimizer.learning_rate,
            lr_scheduler_type=training.schedule,
            warmup_steps=training.warmup,
            max_grad_norm=training.max_gradient_norm,
            optim=plan.recipe.optimizer.name,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        trainer = Ordered(
            model=model,
            args=arguments,
            train_dataset=plan.encoded.splits["train"],
            data_collator=plan.collate,
            callbacks=[Beginning(begin)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()

    return loop

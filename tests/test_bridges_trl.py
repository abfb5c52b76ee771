"""The bridges on trl's trainers: their own loss stays, ours takes its place, rates are split."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from deltatune.bridges.callback import DeltaCallback
from deltatune.bridges.checkpoints import with_exact_checkpoints
from deltatune.bridges.optimizer import attach_optimizer
from deltatune.bridges.trainer import with_objective
from deltatune.errors import InputError
from deltatune.objectives.next_token import NextToken
from deltatune.updates.ratios import Ratios
from tests.test_bridges_trainer import KeepGradients, nonzero_llama, squared_norm

pytestmark = pytest.mark.filterwarnings(
    # peft asks transformers, and trl gives it, names that 5.23 deprecates.
    "ignore:`.*` is deprecated and will be removed in v6:FutureWarning"
)
ROWS = {
    SFTTrainer: [{"prompt": f"w{i} w{i + 1}", "completion": " w5" * (1 + i % 3)} for i in range(8)],
    DPOTrainer: [
        {"prompt": f"w{i} w{i + 1}", "chosen": " w5 w6", "rejected": " w7"} for i in range(8)
    ],
    GRPOTrainer: [{"prompt": f"w{i} w{i + 1}"} for i in range(8)],
}
CONFIGURATIONS = {
    SFTTrainer: (SFTConfig, {"max_length": 16}),
    DPOTrainer: (DPOConfig, {"max_length": 16}),
    GRPOTrainer: (GRPOConfig, {"max_completion_length": 4, "num_generations": 2}),
}
ALL = pytest.mark.parametrize("kind", list(ROWS), ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CI", "1")  # trl reports usage over the network otherwise
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def words() -> PreTrainedTokenizerFast:
    vocabulary = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(61))]
    model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="w0")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def long_words(completions: list[str], **_: Any) -> list[float]:
    """Reward numbers above w30, which sampled tokens often enough are and are not."""
    return [
        float(sum(int(w[1:]) > 30 for w in text.split() if w[1:].isdecimal()))
        for text in completions
    ]


def make(kind: Any, folder: Path, *, trainer_class: Any = None, **options: Any) -> Any:
    """Return one of trl's trainers, or a subclass of it, on a tiny Llama with LoRA."""
    configuration, own = CONFIGURATIONS[kind]
    ours = {k: options.pop(k) for k in ("objective", "auxiliary", "callbacks") if k in options}
    rewards = {"reward_funcs": long_words} if kind is GRPOTrainer else {}
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "bf16": False,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        **own,
        **options,
    }
    model, sites = nonzero_llama()
    trainer = (trainer_class or kind)(
        model=model,
        args=configuration(**arguments),
        train_dataset=Dataset.from_list(ROWS[kind]),
        processing_class=words(),
        **rewards,
        **ours,
    )
    return trainer, sites


def trained(trainer: Any) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}


@ALL
def test_own_loss_of_trl_stays_to_the_last_bit_without_an_objective(
    kind: Any, tmp_path: Path
) -> None:
    theirs, _ = make(kind, tmp_path)
    theirs.train()
    ours, _ = make(kind, tmp_path, trainer_class=with_objective(kind))
    ours.train()
    for name, weight in trained(theirs).items():
        assert torch.equal(weight, trained(ours)[name]), name


@ALL
def test_auxiliary_term_counts_once_per_step_on_trl(kind: Any, tmp_path: Path) -> None:
    def gradients(auxiliary: Any) -> dict[str, Tensor]:
        trainer, _ = make(
            kind,
            tmp_path,
            trainer_class=with_objective(kind),
            auxiliary=auxiliary,
            max_steps=1,
            max_grad_norm=0.0,
        )
        keep = KeepGradients(trainer.model)
        trainer.add_callback(keep)
        trainer.train()
        return keep.steps[0]

    plain, added = gradients(()), gradients((squared_norm,))
    for name, gradient in added.items():
        # d/dB |B|^2 = 2 B = 0.1 for every entry; float32 sums in another order.
        extra = torch.full_like(gradient, 0.1 if "lora_B" in name else 0.0)
        torch.testing.assert_close(gradient - plain[name], extra, rtol=1e-4, atol=1e-6)


def test_next_token_on_sft_equals_the_loss_of_trl(tmp_path: Path) -> None:
    theirs, _ = make(SFTTrainer, tmp_path, optim="sgd")
    theirs.train()
    ours, _ = make(
        SFTTrainer,
        tmp_path,
        trainer_class=with_objective(SFTTrainer),
        objective=NextToken(),
        optim="sgd",
    )
    ours.train()
    for name, weight in trained(theirs).items():
        # trl's fused head and our cross-entropy round differently in float32.
        torch.testing.assert_close(trained(ours)[name], weight, rtol=1e-5, atol=1e-7)
    logged = [[r["loss"] for r in t.state.log_history if "loss" in r] for t in (ours, theirs)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


@ALL
def test_rates_are_split_and_checkpoints_hold_no_pickle_on_trl(kind: Any, tmp_path: Path) -> None:
    trainer, sites = make(
        kind,
        tmp_path,
        trainer_class=with_objective(with_exact_checkpoints(kind)),
        save_strategy="steps",
        save_steps=1,
    )
    update = Ratios(roles={"value": 4.0})
    attach_optimizer(trainer, update=update, sites=sites, learning_rate=1e-3)
    trainer.add_callback(DeltaCallback(trainer, update=update, sites=sites, check_movement_after=2))
    trainer.train()
    initial = {g["label"]: g["initial_lr"] for g in trainer.optimizer.param_groups}
    assert initial == {"query": 1e-3, "value": 4e-3}
    endings = {path.suffix for path in (tmp_path / "checkpoint-2").iterdir()}
    assert not endings & {".pt", ".pth", ".bin", ".pkl"}
    resumed, _ = make(
        kind, tmp_path, trainer_class=with_objective(with_exact_checkpoints(kind)), max_steps=3
    )
    attach_optimizer(resumed, update=update, sites=sites, learning_rate=1e-3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


@pytest.mark.parametrize("kind", [DPOTrainer, GRPOTrainer], ids=lambda kind: kind.__name__)
def test_objective_is_refused_where_trl_gives_no_labels(kind: Any, tmp_path: Path) -> None:
    trainer, _ = make(kind, tmp_path, trainer_class=with_objective(kind), objective=NextToken())
    with pytest.raises(InputError, match=r"no 'labels', which an objective needs"):
        trainer.train()


@pytest.mark.parametrize("kind", [DPOTrainer, GRPOTrainer], ids=lambda kind: kind.__name__)
def test_trl_trainers_have_no_argument_for_an_optimizer_factory(kind: Any) -> None:
    # So the factory is set after the trainer is built.
    assert "optimizer_cls_and_kwargs" not in inspect.signature(kind.__init__).parameters
    assert issubclass(kind, Trainer)


def test_compute_loss_func_is_deprecated_in_trl(tmp_path: Path) -> None:
    # So the bridge overrides compute_loss.
    model, _ = nonzero_llama()
    with pytest.warns(FutureWarning, match=r"`compute_loss_func` is deprecated"):
        SFTTrainer(
            model=model,
            args=SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list(ROWS[SFTTrainer]),
            processing_class=words(),
            compute_loss_func=lambda *_, **__: None,
        )

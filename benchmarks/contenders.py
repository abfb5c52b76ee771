"""What races: random Llamas of one shape, recipes and peft's LoRA on them, and their steps."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from deltatune.bridges.carriers import carrier_of
from deltatune.bridges.start_checks import supervised_head
from deltatune.bridges.supervised_head import SupervisedHead
from deltatune.errors import InputError
from deltatune.objectives.next_token import NextToken
from deltatune.parts import known
from deltatune.recipe import Recipe, named
from deltatune.selections.by_role import ByRole

ROLES = ("query", "key", "value", "output", "gate", "up", "down")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16

Step = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape of a model and of one micro-batch."""

    width: int = 512
    layers: int = 4
    inner: int = 1408
    heads: int = 8
    key_value_heads: int = 8
    vocabulary: int = 8000
    sequences: int = 2
    length: int = 256

    def base(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> LlamaForCausalLM:
        """Return a random Llama, always the same."""
        torch.manual_seed(0)
        settings = LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.length,
            attn_implementation="sdpa",
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # an 8B model would not fit twice
        try:
            with torch.device(device):
                return LlamaForCausalLM(settings)
        finally:
            torch.set_default_dtype(before)

    def tokens(self, device: str | torch.device = "cpu") -> Tensor:
        """Return random token ids, `(sequences, length)`."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.sequences, self.length)
        return torch.randint(self.vocabulary, shape, generator=generator).to(device)


RACE = Shape()
TINY = Shape(width=64, layers=2, inner=176, heads=4, key_value_heads=4, vocabulary=128, length=32)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model with its optimizer, ready to step.

    Args:
        model: in training mode.
        optimizer: of what trains.
        tokens: `(batch, seq)`, inputs and labels at once.
        autocasts: whether the forward pass runs in bfloat16 over float32 weights.
        head: the way to the loss that a session of ours takes; None for the model's own.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    tokens: Tensor
    autocasts: bool = False
    head: SupervisedHead | None = None

    def forward(self) -> Tensor:
        """Return the loss of the batch, with its graph."""
        kind = self.tokens.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.autocasts):
            if self.head is not None:
                return self._loss_by_head(self.head)
            outputs = self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False)
        return outputs.loss

    def _loss_by_head(self, head: SupervisedHead) -> Tensor:
        batch = {"input_ids": self.tokens, "labels": self.tokens}
        inputs = {"input_ids": self.tokens, "use_cache": False}
        objective = NextToken()
        return head.total(self.model, inputs, batch, objective) / objective.count(batch)

    def backward(self) -> Tensor:
        """Return the loss after a forward and a backward pass."""
        self.model.zero_grad(set_to_none=True)
        loss = self.forward()
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        """Return the loss after a whole training step."""
        loss = self.backward()
        self.optimizer.step()
        return loss

    @property
    def trainable_parameters(self) -> int:
        """Scalars that train."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def peft_lora(
    shape: Shape,
    dtype: torch.dtype,
    *,
    dropout: float = 0.0,
    rank: int = RANK,
    projections: tuple[str, ...] = PROJECTIONS,
    device: str = "cpu",
) -> Contender:
    """Return peft's plain LoRA with alpha = rank, and else peft's defaults, under AdamW."""
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=dropout,
        target_modules=list(projections),
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(shape.base(dtype, device), config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return Contender(
        model=model, optimizer=torch.optim.AdamW(trained, lr=1e-3), tokens=shape.tokens(device)
    )


def of_recipe(
    recipe: Recipe,
    shape: Shape,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    takes_our_head: bool = False,
) -> Contender:
    """Return a recipe on the same base, with the optimizer and the precision that it runs in.

    Args:
        recipe: what trains.
        shape: of base and batch.
        dtype: of the frozen base; whole weights train in float32, under autocast if this is less.
        device: where.
        takes_our_head: take the loss as a session of ours does, chunk by chunk.

    Raises:
        InputError: the recipe does not fit the model.
    """
    trains_base = carrier_of(recipe.delta).trains_base
    base = shape.base(torch.float32 if trains_base else dtype, device)
    tokens = shape.tokens(device)
    batches = [{"input_ids": tokens, "labels": tokens}] * 2
    model = recipe.prepare(base, batches, task_type="CAUSAL_LM").train()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, report_to=[], use_cpu=device == "cpu", max_steps=1000)
        trainer: Any = recipe.trainer_class(Trainer)(model=model, args=arguments)
        recipe.attach(trainer).create_optimizer()
    return Contender(
        model=model,
        optimizer=trainer.optimizer,
        tokens=tokens,
        autocasts=trains_base and dtype == torch.bfloat16,
        head=supervised_head(model, NextToken())[0] if takes_our_head else None,
    )


def settings(only: Collection[str] = ()) -> dict[tuple[str, str], Recipe]:
    """Return every recipe of the catalogue: as it is, and matched to the LoRA it races against.

    Matched is the same delta with rank 16 and alpha 16 on all seven projections; recipes without a
    rank, or with a selection of their own kind, have no such form. Plain LoRA also comes as our
    sessions train it, with the loss taken by their own head.

    Args:
        only: names of recipes; all if there are none.
    """
    found = {}
    for name in only or known("recipes"):
        recipe = named(name)
        found[name, "own"] = recipe
        matched = _matched(recipe)
        if matched is not None:
            found[name, "matched"] = matched
    if ("lora", "matched") in found:
        found["lora", "as_trained"] = found["lora", "matched"]
    return found


def _matched(recipe: Recipe) -> Recipe | None:
    names = {field.name for field in dataclasses.fields(recipe.delta)}
    ranked = {name: RANK for name in ("rank", "r", "alpha", "lora_alpha") if name in names}
    if not {"rank", "r"} & names or type(recipe.selection) is not ByRole:
        return None
    try:
        delta = dataclasses.replace(recipe.delta, **ranked)
        return dataclasses.replace(recipe, delta=delta, selection=ByRole(roles=ROLES))
    except InputError:
        return None


def quiet() -> None:
    """Keep what peft and transformers deprecate out of a benchmark's output."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)

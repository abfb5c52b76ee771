"""Prompts in, the likeliest next tokens out, one after the other, until the model ends its text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

__all__ = ["Continuation", "greedy"]


class Continuation(NamedTuple):
    """What a model adds to one prompt.

    Attributes:
        ids: the new tokens, without the end token.
        log_probability: of them all together and of the end token, if it came, in nats.
    """

    ids: list[int]
    log_probability: float


def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    end_ids: Collection[int],
    pad_id: int,
    batch_size: int = 16,
    positions: int | None = None,
) -> list[Continuation]:
    """Let a model continue prompts by its likeliest token, of equal ones the lowest id.

    Prompts of like length share a batch, padded on the left and masked there, so that each is
    answered as if alone. What the model's own generation settings ask for (a temperature, a
    penalty) is left aside, so that answers of two models compare. The model is left as it was.

    Args:
        model: a causal language model of transformers, perhaps with an adapter of peft on it.
        prompts: token ids of each prompt, none empty.
        new_tokens: the most that are generated for one prompt, from 1 up.
        end_ids: tokens that end an answer; they are no part of it.
        pad_id: what fills a batch; any id will do.
        batch_size: prompts at a time.
        positions: the most tokens that the model can take, prompt and answer together; None where
            there is no bound. A prompt with no room left is answered with nothing.

    Returns:
        The continuation of each prompt, in the order given.
    """
    limits = [
        new_tokens if positions is None else min(new_tokens, positions - len(prompt))
        for prompt in prompts
    ]
    answers = [Continuation([], 0.0)] * len(prompts)
    with _plain_settings(model):
        for chosen in _batches(prompts, limits, batch_size):
            found = _continued(
                model, [prompts[i] for i in chosen], limits[chosen[0]], end_ids, pad_id
            )
            for i, answer in zip(chosen, found, strict=True):
                answers[i] = answer
    return answers


def _batches(
    prompts: Sequence[Sequence[int]], limits: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    """Yield the numbers of prompts that are answered together: by length, and of one limit."""
    waiting: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)):
        if limits[i] < 1:
            continue
        if waiting and (len(waiting) == batch_size or limits[i] != limits[waiting[0]]):
            yield waiting
            waiting = []
        waiting.append(i)
    if waiting:
        yield waiting


def _continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    end_ids: Collection[int],
    pad_id: int,
) -> list[Continuation]:
    length = max(map(len, prompts))
    rows = [[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = next(model.parameters()).device
    listener = _Listener()
    output: Tensor = model.generate(
        input_ids=torch.tensor(rows, device=device),  # (batch, seq)
        attention_mask=torch.tensor(masks, device=device),  # (batch, seq)
        generation_config=GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(end_ids),
            pad_token_id=pad_id,
        ),
        logits_processor=LogitsProcessorList([listener]),
    )
    likely = torch.stack(listener.log_probabilities, dim=1)  # (batch, new)
    answers = zip(output[:, length:].tolist(), likely.tolist(), strict=True)
    return [_until_end(ids, log_probabilities, end_ids) for ids, log_probabilities in answers]


class _Listener(LogitsProcessor):
    """Keeps how likely the chosen tokens were: `(batch,)` a step, not whole `(batch, vocab)`."""

    def __init__(self) -> None:
        self.log_probabilities: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float()  # (batch, vocab)
        self.log_probabilities.append(logits.amax(dim=-1) - logits.logsumexp(dim=-1))
        return scores


def _until_end(
    ids: Sequence[int], log_probabilities: Sequence[float], end_ids: Collection[int]
) -> Continuation:
    ends = (place for place, token in enumerate(ids) if token in end_ids)
    end = next(ends, len(ids))
    return Continuation(list(ids[:end]), sum(log_probabilities[: end + 1]))


@contextmanager
def _plain_settings(model: nn.Module) -> Iterator[None]:
    """Put generation settings that say nothing into a model and whatever is wrapped around it.

    What a call leaves open transformers takes from there.
    """
    owners: list[dict[str, Any]] = [
        vars(module) for module in model.modules() if "generation_config" in vars(module)
    ]
    kept: list[Mapping[str, Any]] = [owner["generation_config"] for owner in owners]
    try:
        for owner in owners:
            owner["generation_config"] = GenerationConfig()
        yield
    finally:
        for owner, settings in zip(owners, kept, strict=True):
            owner["generation_config"] = settings

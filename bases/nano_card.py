"""Measure a saved `nano` as a user loads it, and write its model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from baselines import compressed, five_gram
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltatune.data.offline.library_text import LibraryParts
from deltatune.files import write_json_atomically, write_text_atomically

__all__ = ["write_card"]

SAMPLED = (
    'def read_lines(path):\n    """Return the lines of a file."""\n',
    "class Stack:\n    def __init__(self):\n",
    '"""This module provides functions for ',
)
SAMPLE_TOKENS = 80


def write_card(
    folder: Path,
    parts: LibraryParts,
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
    *,
    facts: Mapping[str, Any],
    stride: int,
) -> None:
    """Write `figures.json` and `README.md` beside the weights.

    Args:
        folder: of the saved model and tokenizer.
        parts: the texts.
        train: all training tokens once, `(tokens,)`.
        held_out: all held-out tokens, `(tokens,)`.
        facts: of the training, for the card.
        stride: held-out tokens scored per window.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_text = "".join(parts.held_out.values()).encode()
    train_text = "".join(parts.train.values()).encode()
    bits = _stream_nats(model, torch.from_numpy(held_out), stride) / math.log(2) / len(held_text)
    scores = {
        "nano": bits,
        "five_gram_over_its_tokens": five_gram(
            train.tolist(), held_out.tolist(), len(tokenizer), len(held_text)
        ),
        "five_gram_over_bytes": five_gram(list(train_text), list(held_text), 256, len(held_text)),
        **compressed(train_text, held_text),
    }
    figures = {
        "held_out_bits_per_byte": {name: round(score, 4) for name, score in scores.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_files": len(parts.train),
        "held_out_files": len(parts.held_out),
        "held_out_bytes": len(held_text),
        "dropped_files": len(parts.dropped),
        **facts,
    }
    write_json_atomically(folder / "figures.json", figures)
    samples = [_sample(model, tokenizer, text) for text in SAMPLED]
    write_text_atomically(folder / "README.md", _card(figures, samples))


def _stream_nats(model: Any, tokens: torch.Tensor, stride: int) -> float:
    """Return the summed loss of a stream: windows overlap, so that each token sees some context.

    A window has `2 stride` tokens, of which the later half is scored; the first window scores all.
    """
    length = 2 * stride
    tokens = tokens[: len(tokens) // stride * stride]
    windows = tokens.unfold(0, length, stride)  # (windows, length)
    total = 0.0
    with torch.no_grad():
        for number, part in enumerate(windows.split(16)):
            losses = F.cross_entropy(
                model(part, use_cache=False).logits[:, :-1].transpose(1, 2),
                part[:, 1:],
                reduction="none",
            )  # (windows, length - 1)
            total += losses[:, stride - 1 :].sum().item()
            if number == 0:
                total += losses[0, : stride - 1].sum().item()
    return total


def _sample(model: Any, tokenizer: Any, text: str) -> str:
    given = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    made = model.generate(**given, max_new_tokens=SAMPLE_TOKENS, do_sample=False)
    written: str = tokenizer.decode(made[0], skip_special_tokens=True)
    return written


def _card(figures: Mapping[str, Any], samples: list[str]) -> str:
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {score:.3f} |"
        for name, score in figures["held_out_bits_per_byte"].items()
    )
    shown = "\n\n".join(f"```python\n{sample}\n```" for sample in samples)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: psf-2.0
---
# deltatune/nano

A causal language model of {figures["parameters"]:,} parameters, pre-trained on the sources and
docstrings of Python {figures["python"]}'s standard library. It is there so that fine-tuning can be
tried, tested and compared without a network; it is no assistant.

- Layout: `LlamaForCausalLM`, width 256, 5 layers, 4 query heads on 2 key and value heads, rotary
  positions, context 512, tied embeddings, byte-level byte-pair tokenizer of 4,096, bfloat16.
- Data: {figures["training_files"]:,} files; {figures["held_out_files"]} others
  ({figures["held_out_bytes"]:,} bytes), chosen by a hash of their path (5 %), were held out;
  {figures["dropped_files"]} were dropped as copies or tables of characters.
- Training: {figures["tokens"]:,} tokens in {figures["steps"]:,} steps,
  {figures["cpu_seconds"] / 60:.0f} minutes of CPU time on {figures["device"]}; the loss curve is
  in `training.jsonl`.
- Made by `{figures["command"]}`.

## Held-out text, bits per byte

| predictor | bits per byte |
|---|---|
{rows}

The 5-grams were counted on the same training text (Witten-Bell interpolation). `figures.json` holds
these numbers.

## Samples (greedy)

{shown}

## What it can't do

It knows no facts, no other programming language, and English only as docstrings write it. It loses
the thread after a few lines, counts and calculates badly, and repeats itself. Code that it writes
looks like Python more often than it works. Files of other Python versions may hold text that it was
trained on under another name.

## Licence

The training text is Python's standard library, under the PSF License Version 2; short passages may
be reproduced word for word, so treat long outputs as derived from it. Copyright of Python: Python
Software Foundation. The weights may be used under the same terms.
"""


if __name__ == "__main__":
    raise SystemExit("run bases/nano.py, which calls this")

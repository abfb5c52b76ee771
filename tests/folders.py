"""Small model folders with a tokenizer, and small data files, as a user would have them on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.models import tiny

TEXT = (
    "the cat sat on the mat and the dog sat on the log",
    "how many apples are left if you eat two of five",
    "a bright day in the cold north with clocks that strike",
)


def tokenizer(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer on a few lines."""
    model = Tokenizer(BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXT, trainer)
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def model_folder(
    folder: Path, name: str = "llama", task: str = "causal_lm", **overrides: Any
) -> Path:
    """Write a tiny random model of the real class, with a tokenizer, into `folder`."""
    words = tokenizer()
    model = tiny(name, task, vocab_size=len(words), **overrides)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def rows_file(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def completions(number: int = 24) -> list[dict[str, str]]:
    """Prompt and completion rows of varying length."""
    return [
        {"prompt": f"how many are {i} cats", "completion": " " + "the mat " * (1 + i % 4)}
        for i in range(number)
    ]


def classifications(number: int = 40) -> list[dict[str, Any]]:
    """Rows whose label can be read off the text."""
    words = ("cat", "dog")
    return [
        {"text": f"the {words[i % 2]} sat on log {i}", "label": words[i % 2]} for i in range(number)
    ]


def our_line(error: str) -> str:
    """Return the one line of ours on standard error; it must be the only one."""
    lines = [line for line in error.splitlines() if line.startswith("deltatune: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]

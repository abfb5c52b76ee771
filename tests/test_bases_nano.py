"""The packaged language model: small, loadable by anyone, and as good as its card says."""

from __future__ import annotations

import importlib.util
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltatune.base import locate
from deltatune.data.offline.library_text import TASK

SCRIPTS = Path(__file__).parents[1] / "bases"


@pytest.fixture(scope="module")
def folder():
    return Path(locate("deltatune/nano"))


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def baselines():
    spec = importlib.util.spec_from_file_location("baselines", SCRIPTS / "baselines.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nano_is_a_small_llama_with_grouped_queries(folder, model):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".jsonl", ".md", ".safetensors"}
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 3_000_000 <= sum(p.numel() for p in model.parameters()) <= 5_000_000
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.max_position_embeddings == 512
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert stored.dtype == torch.bfloat16


def test_nano_tokenizer_gives_any_text_back_and_keeps_digits_apart(tokenizer):
    text = 'def f(x):\n    """Größe — 12,345 ✓"""\n\treturn x\n'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(tokenizer) == 4096
    assert len(tokenizer("2024", add_special_tokens=False)["input_ids"]) == 4
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_nano_predicts_what_it_never_saw_better_than_a_compressor(model, tokenizer):
    texts = TASK.load(train=2, validation=2, test=20)["test"]["text"][:]
    nats = size = packed = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, :512]
        kept = tokenizer.decode(ids[0], clean_up_tokenization_spaces=False).encode()
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        nats += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        size += len(kept)
        packed += len(zlib.compress(kept, 9))
    # Each piece is read alone here, so both have less to go by than in the card: 0.96 and 2.08.
    assert nats / math.log(2) / size < 1.4
    assert 8 * packed / size > 2.5


def test_nano_card_states_figures_that_beat_the_baselines(folder):
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    bits = dict(figures["held_out_bits_per_byte"])
    nano = bits.pop("nano")
    assert all(nano < 0.75 * other for other in bits.values())
    assert f"| nano | {nano:.3f} |" in (folder / "README.md").read_text(encoding="utf-8")
    log = (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(log[-1])
    assert (last["steps"], last["tokens"]) == (figures["steps"], figures["tokens"])
    assert last["cpu_seconds"] <= 3600
    assert last["loss"] < json.loads(log[0])["loss"] / 2


def test_mixed_is_witten_bell_by_hand(baselines):
    # Seen 0 0 1: 3 symbols, 2 kinds. p(0) = (2 + 2/2) / (3 + 2), p(1) = (1 + 2/2) / (3 + 2).
    asked = np.array([9, 9, 9, 9, 0, 1], np.int64)
    seen = np.array([0, 0, 1], np.int64)
    mixed = baselines._mixed(np.full(2, 0.5), seen, asked, 1, 4)
    assert mixed == pytest.approx([0.6, 0.4])


def test_five_gram_learns_a_rhythm_and_nothing_from_noise(baselines):
    rhythm = [0, 1, 2, 3] * 500
    assert baselines.five_gram(rhythm, rhythm[:400], 4, 400) < 0.05
    noise = np.random.default_rng(0).integers(0, 16, 6000).tolist()
    assert baselines.five_gram(noise[:3000], noise[3000:], 16, 3000) > 0.98 * 4
    with pytest.raises(ValueError, match="do not fit five times"):
        baselines.five_gram([1], [1], 2**13, 1)

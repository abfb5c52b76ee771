"""Pre-train `deltatune/nano`: a small Llama on the sources of Python's own standard library.

python bases/nano.py --output src/deltatune/bases/nano

The same seed, Python and number of passes give the same loss curve within the noise of sums in
bfloat16. On a CPU it needs a C++ compiler, with which torch fuses the elementwise work;
`--no-compile` does without, and takes longer.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nano_card import write_card

from deltatune.data.offline.library_text import library_parts
from deltatune.files import replace_folder_atomically, write_text_atomically
from deltatune.planning import device
from deltatune.seeds import generator_for, seed_for, shuffled

END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 4096
CONTEXT = 512
BATCH = 16
PASSES = {"cpu": 5, "other": 20}
WARM_UP = 60
MATRIX_RATE, VECTOR_RATE = 0.02, 3e-3
LOOKED_AT = 32_768  # held-out tokens while training; all of them at the end


def tokenizer_of(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level byte-pair tokenizer; digits stay single, so that numbers have places."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )


def model_of(seed: int) -> LlamaForCausalLM:
    """Draw the untrained model: 4.7 million parameters, two query heads to one key and value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "nano"))
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=256,
                intermediate_size=704,
                num_hidden_layers=5,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=0,
                pad_token_id=1,
            )
        )


def encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return the tokens of each text, closed by the end token."""
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array([*row, tokenizer.eos_token_id], np.int64) for row in rows]


def blocks(documents: Sequence[NDArray[np.int64]], passes: int, seed: int) -> Tensor:
    """Return all training blocks in their order: `(blocks, CONTEXT + 1)`.

    Every pass reads all files, in an order of its own.
    """
    chosen: list[NDArray[np.int64]] = []
    for turn in range(passes):
        chosen += shuffled(documents, generator_for(seed, "nano order", turn))
    stream = np.concatenate(chosen)
    length = CONTEXT + 1
    return torch.from_numpy(stream[: len(stream) // length * length].reshape(-1, length))


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for embeddings and norms."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "layers" in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_at(step: int, steps: int) -> float:
    """Rise linearly over the warm-up, then fall linearly to nothing."""
    return min((step + 1) / WARM_UP, (steps - step) / (steps - WARM_UP), 1.0)


def nats(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Return the summed loss of `(batch, CONTEXT + 1)` tokens in nats."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        hidden = model.model(tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)  # (batch, CONTEXT, vocabulary)
    wanted = tokens[:, 1:].reshape(-1)
    return F.cross_entropy(logits.reshape(-1, VOCABULARY).float(), wanted, reduction="sum")


def held_out_nats(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Return the summed loss of a stream of tokens, `(tokens,)`, each block read alone."""
    length = CONTEXT + 1
    whole = tokens[: len(tokens) // length * length].reshape(-1, length)
    with torch.no_grad():
        return sum(nats(model, part).item() for part in whole.split(BATCH))


def train(
    model: LlamaForCausalLM, rows: Tensor, looked_at: Tensor, *, compiled: bool
) -> Iterator[dict[str, Any]]:
    """Train on all blocks in order and yield a line for the log every 25 steps."""
    loss_of = torch.compile(nats) if compiled else nats
    batches = rows[: len(rows) // BATCH * BATCH].split(BATCH)
    stages = optimizers(model)
    scheduled = [
        torch.optim.lr_scheduler.LambdaLR(stage, lambda step: rate_at(step, len(batches)))
        for stage in stages
    ]
    started, losses = time.process_time(), []
    for step, batch in enumerate(batches, start=1):
        tokens = batch.to(model.device)
        loss = loss_of(model, tokens) / tokens[:, 1:].numel()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stage, schedule in zip(stages, scheduled, strict=True):
            stage.step()
            schedule.step()
            stage.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 25 == 0 or step == len(batches):
            line = {
                "step": step,
                "steps": len(batches),
                "tokens": step * BATCH * CONTEXT,
                "loss": sum(losses) / len(losses),
                "cpu_seconds": round(time.process_time() - started, 1),
            }
            if step % 250 == 0 or step == len(batches):
                line["held_out_loss"] = held_out_nats(model, looked_at) / len(looked_at)
            losses.clear()
            yield line


def main() -> None:
    """Read the corpus, train, save in bfloat16, measure what was saved, and write the card."""
    asked = _asked()
    parts = library_parts()
    tokenizer = tokenizer_of(list(parts.train.values()))
    documents = encoded(tokenizer, list(parts.train.values()))
    held_out = np.concatenate(encoded(tokenizer, list(parts.held_out.values())))
    on = device()
    passes = asked.passes or PASSES["cpu" if on.type == "cpu" else "other"]
    rows = blocks(documents, passes, asked.seed)
    print(f"{sum(map(len, documents)):,} tokens, {len(rows):,} blocks, {passes} passes", flush=True)
    model = model_of(asked.seed).to(on)
    log = []
    looked_at = torch.from_numpy(held_out[:LOOKED_AT]).to(on)
    for line in train(model, rows[: asked.blocks or None], looked_at, compiled=asked.compile):
        log.append(json.dumps(line))
        print(log[-1], flush=True)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder_atomically(asked.output) as folder:
        nn.Module.to(model, "cpu", torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_text_atomically(folder / "training.jsonl", "\n".join(log) + "\n")
        command = f"python bases/nano.py --output {asked.output} --seed {asked.seed}"
        write_card(
            folder,
            parts,
            np.concatenate(documents),
            held_out,
            facts={
                "command": f"{command} --passes {passes}",
                "python": platform.python_version(),
                "device": str(on),
                **json.loads(log[-1]),
            },
            stride=CONTEXT // 2,
        )


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", type=int, default=0, help="over the library; 0: by device")
    parser.add_argument("--blocks", type=int, default=0, help="only so many; to try the script")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()

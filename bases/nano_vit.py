"""Pre-train `deltatune/nano-vit`: a small vision transformer on scikit-learn's digits 0 to 4.

python bases/nano_vit.py --output src/deltatune/bases/nano-vit

It takes about a minute on one core. The same seed gives the same loss curve.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nano_vit_card import write_card

from deltatune.data.offline.digit_scans import SIZE, held_out, scans
from deltatune.data.offline.digits_seen import DIGITS
from deltatune.files import (
    replace_folder_atomically,
    write_json_atomically,
    write_text_atomically,
)
from deltatune.seeds import generator_for, seed_for

EPOCHS = 120
BATCH = 32
RATE = 1e-3
WEIGHT_DECAY = 0.05
WARM_UP = 100  # steps
FARTHEST = 1  # pixels that a scan is moved at most, each way
NOISE = 0.1  # standard deviation, as a fraction of full ink
# Grey is shown on three equal channels: what other tools hand a vision transformer has three.
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": SIZE, "width": SIZE},
}


def model_of(seed: int) -> ViTForImageClassification:
    """Draw the untrained model: patches of 2 x 2 pixels, four layers of width 64."""
    names = dict(enumerate(map(str, DIGITS)))
    config = ViTConfig(
        image_size=SIZE,
        patch_size=2,
        num_channels=3,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "nano-vit"))
        return ViTForImageClassification(config)


def pixels(ink: Tensor) -> Tensor:
    """Turn ink in [0, 1], `(batch, 8, 8)`, into what the model reads, `(batch, 3, 8, 8)`."""
    return ((ink - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)


def disturbed(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Move each scan of `(batch, 8, 8)` within its frame and add noise."""
    framed = F.pad(ink, (FARTHEST,) * 4)
    places = torch.randint(0, 2 * FARTHEST + 1, (len(ink), 2), generator=generator).tolist()
    moved = torch.stack(
        [
            scan[row : row + SIZE, column : column + SIZE]
            for scan, (row, column) in zip(framed, places, strict=True)
        ]
    )
    return (moved + NOISE * torch.randn(moved.shape, generator=generator)).clamp(0, 1)


def rate_at(step: int, steps: int) -> float:
    """Rise linearly over the warm-up, then fall linearly to nothing."""
    return min((step + 1) / WARM_UP, (steps - step) / steps, 1.0)


def train(
    model: ViTForImageClassification, numbers: Tensor, *, epochs: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Train on the scans of these numbers and yield a line for the log every epoch."""
    ink, labels = scans()[0][numbers], scans()[1][numbers] - DIGITS.start
    steps = epochs * -(-len(numbers) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    started, step = time.process_time(), 0
    model.train()
    for epoch in range(epochs):
        generator = generator_for(seed, "nano-vit epoch", epoch)
        losses = []
        for chosen in torch.randperm(len(numbers), generator=generator).split(BATCH):
            logits = model(pixels(disturbed(ink[chosen], generator))).logits  # (batch, classes)
            loss = F.cross_entropy(logits, labels[chosen])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            step += 1
        yield {
            "epoch": epoch + 1,
            "step": step,
            "loss": round(sum(losses) / len(losses), 6),
            "cpu_seconds": round(time.process_time() - started, 1),
        }


def main() -> None:
    """Train on two thirds of the digits 0 to 4, save, measure what was saved, write the card."""
    asked = _asked()
    torch.set_num_threads(1)  # sums in one order: the same curve on every number of cores
    parts = [held_out(digit) for digit in DIGITS]
    seen = [number for trained_on, _ in parts for number in trained_on]
    unseen = [number for _, kept in parts for number in kept]
    model = model_of(asked.seed)
    log = []
    for line in train(model, torch.tensor(seen), epochs=asked.epochs, seed=asked.seed):
        log.append(json.dumps(line))
        print(log[-1], flush=True)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder_atomically(asked.output) as folder:
        model.save_pretrained(folder)
        write_json_atomically(folder / "preprocessor_config.json", PROCESSOR)
        write_text_atomically(folder / "training.jsonl", "\n".join(log) + "\n")
        facts = {
            "command": f"python bases/nano_vit.py --output {asked.output} --seed {asked.seed}",
            "python": platform.python_version(),
            "torch": torch.__version__.partition("+")[0],
            "epochs": asked.epochs,
            **json.loads(log[-1]),
        }
        write_card(folder, seen, unseen, facts=facts)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

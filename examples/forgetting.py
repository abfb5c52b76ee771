"""What does nano forget of its own pre-training while it learns word problems?

    python examples/forgetting.py [FOLDER]

Expected output: the loss on held-out Python text before and after, for the default recipe and for
full tuning.
"""

import sys
import tempfile
from pathlib import Path

import deltatune
from deltatune.base import load_base
from deltatune.comparison.evaluation import evaluate
from deltatune.data.encoding import Collator, encode
from deltatune.data.loading import load


def loss_on_library_text(model: object | None, examples: int) -> float:
    """Score a model, or nano as it is, on text that nano was never trained on."""
    base = load_base("deltatune/nano", task="text")
    texts = load(f"deltatune/library-text:test={examples}")
    encoded = encode(texts, base.tokenizer, max_length=256)
    scores = evaluate(
        model or base.model,
        encoded.splits["test"],
        Collator(base.tokenizer),
        task="text",
        split="test",
        batch_size=16,
    )
    return scores.metrics["loss"]


def main(
    folder: Path, data: str = "deltatune/word-problems", steps: int = 0, examples: int = 50
) -> None:
    """Fine-tune by two recipes and score what was there before."""
    print(f"nano: loss {loss_on_library_text(None, examples):.3f} on held-out text")
    # Bases as small as this one want larger rates than the recipes' own.
    rates = {
        "efficientft": {"value_learning_rate": 1e-2},
        "full": {"optimizer.learning_rate": 1e-3},
    }
    for recipe, rate in rates.items():
        run = deltatune.finetune(
            "deltatune/nano",
            data,
            recipe,
            output=folder / recipe,
            assignments={**rate, "training.steps": steps},
        )
        loss = loss_on_library_text(deltatune.load(run.folder), examples)
        print(f"{recipe}: loss {loss:.3f}, right numbers {run.after['final_number']:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

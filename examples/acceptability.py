"""Tell sentences that keep a rule of grammar from those that break it.

    python examples/acceptability.py [FOLDER]

Expected output: accuracy before and after, and how sure the model is.
"""

import json
import sys
import tempfile
from pathlib import Path

import deltatune


def main(folder: Path, data: str = "deltatune/acceptability", steps: int = 0) -> None:
    """Fine-tune nano with a fresh head by the default recipe."""
    run = deltatune.finetune(
        "deltatune/nano",
        data,
        "efficientft",
        output=folder / "acceptability",
        assignments={"value_learning_rate": 1e-2, "training.steps": steps},
    )
    before, after = run.before["accuracy"], run.after["accuracy"]
    print(f"accuracy: {before:.2f} -> {after:.2f}")
    scored = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    sure = [item["confidence"] for item in scored["after"]["items"]]
    print(f"mean confidence: {sum(sure) / len(sure):.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

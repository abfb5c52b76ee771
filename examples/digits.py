"""Scanned digits 5 to 9 on a vision transformer that has only seen 0 to 4.

    python examples/digits.py [FOLDER]

Expected output: accuracy before and after, and how sure the model is.
"""

import json
import sys
import tempfile
from pathlib import Path

import deltatune


def main(folder: Path, data: str = "deltatune/digits-5-9", steps: int = 0) -> None:
    """Fine-tune nano-vit with a fresh head by the default recipe."""
    run = deltatune.finetune(
        "deltatune/nano-vit",
        data,
        "efficientft",
        output=folder / "digits",
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

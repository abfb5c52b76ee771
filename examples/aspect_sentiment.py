"""Short reviews in, quadruples of aspect, category, opinion and sentiment out.

    python examples/aspect_sentiment.py [FOLDER]

Expected output: F1 of exact quadruples before and after, then three answers.
"""

import json
import sys
import tempfile
from pathlib import Path

import deltatune


def main(folder: Path, data: str = "deltatune/aspect-sentiment", steps: int = 0) -> None:
    """Fine-tune nano by the default recipe and look at what it extracts."""
    run = deltatune.finetune(
        "deltatune/nano",
        data,
        "efficientft",
        output=folder / "aspect_sentiment",
        assignments={"value_learning_rate": 1e-2, "training.steps": steps},
    )
    before, after = run.before["quadruple_f1"], run.after["quadruple_f1"]
    print(f"F1: {before:.2f} -> {after:.2f}")
    scored = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    for item in scored["after"]["items"][:3]:
        print(f"answered {item['generated']!r}, score {item['score']:g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

"""Which object is in the box? A base that was never told learns to keep track.

    python examples/boxes.py [FOLDER]

Expected output: the share of right answers before and after, then three answers in
the model's own words.
"""

import json
import sys
import tempfile
from pathlib import Path

import deltatune


def main(folder: Path, data: str = "deltatune/boxes", steps: int = 0) -> None:
    """Fine-tune nano by the default recipe and look at what it answers."""
    run = deltatune.finetune(
        "deltatune/nano",
        data,
        "efficientft",
        output=folder / "boxes",
        assignments={"value_learning_rate": 1e-2, "training.steps": steps},
    )
    before, after = run.before["first_word_match"], run.after["first_word_match"]
    print(f"right boxes: {before:.2f} -> {after:.2f}")
    scored = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    for item in scored["after"]["items"][:3]:
        print(f"answered {item['generated']!r}, score {item['score']:g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

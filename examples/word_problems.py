"""Word problems with worked answers: the number behind `####` counts.

    python examples/word_problems.py [FOLDER]

Expected output: the share of right numbers before and after, then three worked
answers.
"""

import json
import sys
import tempfile
from pathlib import Path

import deltatune


def main(folder: Path, data: str = "deltatune/word-problems", steps: int = 0) -> None:
    """Fine-tune nano by the default recipe and look at how it calculates."""
    run = deltatune.finetune(
        "deltatune/nano",
        data,
        "efficientft",
        output=folder / "word_problems",
        assignments={"value_learning_rate": 1e-2, "training.steps": steps},
    )
    before, after = run.before["final_number"], run.after["final_number"]
    print(f"right numbers: {before:.2f} -> {after:.2f}")
    scored = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    for item in scored["after"]["items"][:3]:
        print(f"answered {item['generated']!r}, score {item['score']:g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

"""Which of four functions does a docstring describe?

    python examples/docstring_matching.py [FOLDER]

Expected output: the share of right names before and after, then three answers.
"""

import json
import sys
import tempfile
from pathlib import Path

import deltatune


def main(folder: Path, data: str = "deltatune/docstring-matching", steps: int = 0) -> None:
    """Fine-tune nano by the default recipe and look at its choices."""
    run = deltatune.finetune(
        "deltatune/nano",
        data,
        "efficientft",
        output=folder / "docstring_matching",
        assignments={"value_learning_rate": 1e-2, "training.steps": steps},
    )
    before, after = run.before["name_match"], run.after["name_match"]
    print(f"right names: {before:.2f} -> {after:.2f}")
    scored = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    for item in scored["after"]["items"][:3]:
        print(f"answered {item['generated']!r}, score {item['score']:g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

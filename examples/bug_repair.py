"""Repair one injected fault in real functions of Python's standard library.

    python examples/bug_repair.py [FOLDER]

Expected output: the share of exact repairs before and after, then three repaired
lines.
"""

import json
import sys
import tempfile
from pathlib import Path

import deltatune


def main(folder: Path, data: str = "deltatune/bug-repair", steps: int = 0) -> None:
    """Fine-tune nano by the default recipe and look at its repairs."""
    run = deltatune.finetune(
        "deltatune/nano",
        data,
        "efficientft",
        output=folder / "bug_repair",
        assignments={"value_learning_rate": 1e-2, "training.steps": steps},
    )
    before, after = run.before["exact_match"], run.after["exact_match"]
    print(f"repaired: {before:.2f} -> {after:.2f}")
    scored = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    for item in scored["after"]["items"][:3]:
        print(f"answered {item['generated']!r}, score {item['score']:g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

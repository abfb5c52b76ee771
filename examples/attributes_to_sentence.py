"""Facts about a function in, one sentence that tells all of them out.

    python examples/attributes_to_sentence.py [FOLDER]

Expected output: the score of the sentences before and after, then three of them.
"""

import json
import sys
import tempfile
from pathlib import Path

import deltatune


def main(folder: Path, data: str = "deltatune/attributes-to-sentence", steps: int = 0) -> None:
    """Fine-tune nano by the default recipe and read what it writes."""
    run = deltatune.finetune(
        "deltatune/nano",
        data,
        "efficientft",
        output=folder / "attributes_to_sentence",
        assignments={"value_learning_rate": 1e-2, "training.steps": steps},
    )
    before, after = run.before["attribute_score"], run.after["attribute_score"]
    print(f"facts told: {before:.2f} -> {after:.2f}")
    scored = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    for item in scored["after"]["items"][:3]:
        print(f"answered {item['generated']!r}, score {item['score']:g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))

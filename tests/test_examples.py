"""The examples run and print what they say."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_trainer_prints_its_groups_and_loads_with_plain_peft():
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLES / "own_trainer.py"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "value: 4 tensors at 0.01" in ended.stdout
    assert "query: 4 tensors at 0.0025" in ended.stdout
    assert ended.stdout.rstrip().endswith("plain peft gives the same logits: True")

"""The packaged vision transformer: what its card says holds, and its script gives it again."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deltatune import packaged_bases
from deltatune.base import load_base
from deltatune.comparison.evaluation import evaluate
from deltatune.data.image_encoding import encode_images
from deltatune.data.loading import load
from deltatune.data.offline import known_tasks
from deltatune.data.offline.digit_scans import held_out
from deltatune.inputs import pixels_for

FOLDER = packaged_bases.FOLDER / "nano-vit"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "bases" / "nano_vit.py"
    monkeypatch.setattr(sys, "path", [*sys.path])
    specification = importlib.util.spec_from_file_location("nano_vit", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_nano_vit_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2 * 2**20
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    assert figures["parameters"] < 1_000_000


def test_nano_vit_tells_held_out_digits_apart_as_its_card_says():
    examples = load("deltatune/digits-0-4")
    base = load_base("deltatune/nano-vit", task=examples.task, label_names=examples.label_names)
    assert base.new_weights == ()  # the head is its own
    scores = evaluate(
        base.model,
        encode_images(examples).splits["test"],
        pixels_for(base),
        task=examples.task,
        split="test",
        batch_size=64,
    )
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    stated = figures["accuracy"]["held_out_scans"]
    assert stated > 0.98
    # One scan on the edge may fall to the other side under another release of torch.
    assert scores.metrics["accuracy"] == pytest.approx(stated, abs=1.5 / 295)


def test_nano_vit_gets_a_fresh_head_for_other_digits():
    base = load_base("deltatune/nano-vit", task="image_classification", label_names=tuple("56789"))
    assert base.new_weights == ("classifier.weight", "classifier.bias")


def test_script_starts_the_loss_curve_that_is_written_beside_the_weights(script: ModuleType):
    seen = [number for digit in script.DIGITS for number in held_out(digit)[0]]
    lines = script.train(script.model_of(0), torch.tensor(seen), epochs=script.EPOCHS, seed=0)
    log = (FOLDER / "training.jsonl").read_text(encoding="utf-8").splitlines()
    # Another release of torch may sum in another order; the seed decides the first digits.
    assert next(lines)["loss"] == pytest.approx(json.loads(log[0])["loss"], abs=1e-3)


def test_script_hands_the_model_what_its_image_processor_makes(script: ModuleType):
    examples = load("deltatune/digits-0-4")
    base = load_base("deltatune/nano-vit", task=examples.task, label_names=examples.label_names)
    rows = [examples.splits["test"][i] for i in range(3)]
    made = pixels_for(base)([{"image": row["image"]} for row in rows])["pixel_values"]
    numbers = known_tasks.load("deltatune/digits-0-4")["test"]["scan"][:3]
    # Stored images have 256 greys, a step of 1/127.5 in what the model reads.
    torch.testing.assert_close(
        made, script.pixels(script.scans()[0][numbers]).contiguous(), atol=4.1e-3, rtol=0
    )

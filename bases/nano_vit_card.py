"""Measure a saved `nano-vit` as a user loads it, and write its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from deltatune.data.image_encoding import ImageCollator
from deltatune.data.offline.digit_scans import dataset, scans
from deltatune.data.offline.digits_seen import DIGITS
from deltatune.files import write_json_atomically, write_text_atomically

__all__ = ["write_card"]

NEIGHBOURS = 3


def write_card(
    folder: Path, seen: Sequence[int], unseen: Sequence[int], *, facts: Mapping[str, Any]
) -> None:
    """Write `figures.json` and `README.md` beside the weights.

    Args:
        folder: of the saved model and image processor.
        seen: numbers of the scans that it was trained on.
        unseen: numbers of the held-out scans.
        facts: of the training, for the card.
    """
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    collate = ImageCollator(AutoImageProcessor.from_pretrained(folder), channels=3)
    figures = {
        "accuracy": {
            "training_scans": _accuracy(model, collate, seen),
            "held_out_scans": _accuracy(model, collate, unseen),
            "held_out_scans_3_nearest_neighbours": _neighbours(seen, unseen),
            "chance": 1 / len(DIGITS),
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_scans": len(seen),
        "held_out_scans": len(unseen),
        **facts,
    }
    write_json_atomically(folder / "figures.json", figures)
    write_text_atomically(folder / "README.md", _card(figures))


def _accuracy(model: Any, collate: ImageCollator, numbers: Sequence[int]) -> float:
    rows = dataset(numbers, DIGITS, lambda scan, number: scan).with_format("arrow")[:].to_pylist()
    batch = collate([{"image": row["image"], "labels": row["label"]} for row in rows])
    with torch.no_grad():
        predicted = model(pixel_values=batch["pixel_values"]).logits.argmax(-1)  # (scans,)
    return round(float((predicted == batch["labels"]).double().mean()), 4)


def _neighbours(seen: Sequence[int], unseen: Sequence[int]) -> float:
    """Return the accuracy of the vote of the most similar training scans."""
    ink, digits = scans()
    known, asked = ink[list(seen)].flatten(1), ink[list(unseen)].flatten(1)  # (scans, 64)
    nearest = torch.cdist(asked, known).topk(NEIGHBOURS, largest=False).indices
    votes = digits[list(seen)][nearest].mode(dim=1).values  # (asked,)
    return round(float((votes == digits[list(unseen)]).double().mean()), 4)


def _card(figures: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {score:.4f} |" for name, score in figures["accuracy"].items()
    )
    return f"""---
library_name: transformers
pipeline_tag: image-classification
license: cc-by-4.0
---
# deltatune/nano-vit

A vision transformer of {figures["parameters"]:,} parameters that tells the handwritten digits 0 to
4 apart. It is there so that fine-tuning of image models can be tried, tested and compared without a
network; the digits 5 to 9 (`deltatune/digits-5-9`) are the task that it has not seen.

- Layout: `ViTForImageClassification`, images of 8 x 8 pixels on three channels, patches of 2 x 2,
  width 64, 4 layers, 4 heads, float32.
- Data: {figures["training_scans"]} scans of the digits 0 to 4 from scikit-learn's `load_digits`
  (real handwriting of 13 people, 16 levels of ink); {figures["held_out_scans"]} others, the same
  number of each digit, were held out. They are the test split of `deltatune/digits-0-4`.
- Training: {figures["epochs"]} epochs in {figures["step"]:,} steps, scans moved by up to a pixel
  and with a little noise; {figures["cpu_seconds"]:.0f} seconds on one core. `training.jsonl` holds
  the loss curve, which the same seed gives again.
- Made by `{figures["command"]}` with torch {figures["torch"]}.

## Accuracy

| scans | accuracy |
|---|---|
{rows}

`figures.json` holds these numbers.

## What it can't do

It knows white ink on black, one digit that fills the frame, and five classes: what is no digit from
0 to 4 becomes one of them all the same, often with great confidence. Larger images are shrunk to
8 x 8 pixels. Held-out scans may be by a person whose other scans it was trained on, since the data
do not name their writers.

## Licence

The scans are the test part of Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak,
1998), which the UCI Machine Learning Repository gives under CC BY 4.0 and scikit-learn passes on.
The weights may be used under the same terms.
"""


if __name__ == "__main__":
    raise SystemExit("run bases/nano_vit.py, which calls this")

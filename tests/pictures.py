"""Small images whose class can be seen, and tiny models that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.models import tiny

SIDES = ("left", "right")
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 8, "width": 8},
}


def picture(number: int, mode: str = "L") -> Image.Image:
    """An image of 8 x 8 pixels, bright on the left for even numbers and on the right for others."""
    made = Image.new("L", (8, 8), number % 64)
    made.paste(200 + number // 2 % 50, (0, 0, 4, 8) if number % 2 == 0 else (4, 0, 8, 8))
    return made.convert(mode)


def pictures(number: int = 24) -> list[dict[str, Any]]:
    """Rows with an image of Pillow and the side that is bright."""
    return [{"image": picture(i), "label": SIDES[i % 2]} for i in range(number)]


def picture_folder(folder: Path, *, splits: bool = True) -> Path:
    """Write images as `SPLIT/CLASS/IMAGE`, or as `CLASS/IMAGE`."""
    for i in range(16):
        place = folder / ("test" if i >= 12 else "train") if splits else folder
        (place / SIDES[i % 2]).mkdir(parents=True, exist_ok=True)
        picture(i).save(place / SIDES[i % 2] / f"{i:02}.png")
    return folder


def image_model_folder(folder: Path, **overrides: Any) -> Path:
    """Write a tiny random vision transformer with an image processor into `folder`."""
    sizes = {"image_size": 8, "patch_size": 4, **overrides}
    tiny("vit", "sequence_classification", **sizes).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), encoding="utf-8")
    return folder

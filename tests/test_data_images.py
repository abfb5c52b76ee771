from __future__ import annotations

import io
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from deltatune.data import images
from deltatune.data.image_encoding import ImageCollator, encode_images
from deltatune.data.loading import load
from deltatune.errors import InputError
from tests.pictures import image_model_folder, picture, picture_folder, pictures


def stored(image: Image.Image) -> dict[str, object]:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def collate(tmp_path_factory: pytest.TempPathFactory) -> ImageCollator:
    folder = image_model_folder(tmp_path_factory.mktemp("model"))
    return ImageCollator(AutoImageProcessor.from_pretrained(folder), channels=3)


def test_load_reads_rows_of_pillow_images_as_image_classification():
    examples = load(pictures())
    assert examples.task == "image_classification"
    assert examples.columns == {"image": "image", "label": "label"}
    assert examples.label_names == ("left", "right")
    assert {name: rows.num_rows for name, rows in examples.splits.items()} == {
        "train": 22,
        "validation": 2,
    }


def test_load_is_the_same_for_rows_a_data_set_and_a_folder_of_the_same_images(tmp_path: Path):
    folder = picture_folder(tmp_path / "sides", splits=False)
    files = sorted(folder.glob("*/*.png"))
    rows = [{"image": stored(Image.open(f)), "label": f.parent.name} for f in files]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    named = {load(source).fingerprint for source in (folder, table, rows)}
    assert len(named) == 1
    assert load(table).table().row_count == 2


def test_load_takes_splits_and_classes_from_folders(tmp_path: Path):
    examples = load(picture_folder(tmp_path))
    assert {name: rows.num_rows for name, rows in examples.splits.items()} == {
        "train": 11,
        "validation": 1,
        "test": 4,
    }
    first = examples.splits["test"][0]
    assert first["image"]["bytes"] is None  # the file stays where it is
    assert first["image"]["path"] == str(tmp_path / "test" / "left" / "12.png")
    assert examples.splits["test"]["label"][:] == [0, 0, 1, 1]


def test_load_keeps_equal_images_on_one_side_of_the_validation_part():
    twice = [row for row in pictures(20) for _ in range(2)]
    splits = load(twice, validation_fraction=0.3).splits
    seen = [{row["image"]["bytes"] for row in splits[name]} for name in ("train", "validation")]
    assert len(seen[0]) + len(seen[1]) == 20
    assert len(seen[0] & seen[1]) <= 2  # the last row of a class stays in training


def test_load_finds_the_only_image_column_whatever_its_name():
    rows = [{"scan": row["image"], "digit": row["label"]} for row in pictures(6)]
    examples = load(rows, columns={"label": "digit"})
    assert (examples.task, examples.columns["image"]) == ("image_classification", "scan")


def test_load_asks_where_images_stand_beside_texts():
    rows = [{**row, "text": f"picture {i}"} for i, row in enumerate(pictures(6))]
    with pytest.raises(InputError, match="hold images and text: give the task"):
        load(rows)
    assert load(rows, task="image_classification").columns["image"] == "image"
    assert load(rows, task="classification").columns["text"] == "text"


def test_load_asks_for_the_label_of_images():
    with pytest.raises(InputError, match=r"no column is known to be the label.*--column label="):
        load([{"image": row["image"]} for row in pictures(4)])


def test_load_refuses_texts_as_images_by_name():
    rows = [{"image": f"{i}.png", "label": i % 2} for i in range(4)]
    with pytest.raises(InputError, match="'image' of train holds string, but images must be"):
        load(rows, task="image_classification")


def test_load_names_the_row_of_a_broken_image():
    rows = pictures(4)
    rows[2]["image"] = {"bytes": b"no image", "path": None}
    for row in (rows[0], rows[1], rows[3]):
        row["image"] = stored(row["image"])
    with pytest.raises(InputError, match="row 3 of train holds no image that can be opened"):
        load(rows)


def test_load_refuses_images_in_two_depths(tmp_path: Path):
    picture_folder(tmp_path)
    picture(1).save(tmp_path / "train" / "stray.png")
    with pytest.raises(InputError, match="train/CLASS/IMAGE"):
        load(tmp_path)


def test_load_says_what_to_install_without_pillow(monkeypatch: pytest.MonkeyPatch):
    rows = [{"image": stored(row["image"]), "label": row["label"]} for row in pictures(4)]
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install deltatune\[images\]"):
        load(rows)


def test_encode_images_counts_classes_and_opens_nothing(tmp_path: Path):
    examples = load(picture_folder(tmp_path))
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    encoded = encode_images(examples)
    counts = encoded.supervision.splits["train"]
    assert counts.examples == sum(counts.labels.values()) == 11
    assert encoded.splits["train"].column_names == ["image", "labels"]
    assert encoded.uniform_loss() == pytest.approx(0.6931, abs=1e-4)
    encoded.supervision.check()


def test_collator_scales_pixels_as_the_processor_says(collate: ImageCollator):
    flat = Image.new("L", (8, 8), 51)  # 51 / 255 = 0.2, and (0.2 - 0.5) / 0.5 = -0.6
    batch = collate([{"image": stored(flat), "labels": 1}])
    assert batch["pixel_values"].shape == (1, 3, 8, 8)
    torch.testing.assert_close(batch["pixel_values"], torch.full((1, 3, 8, 8), -0.6))
    assert batch["labels"].tolist() == [1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_collator_makes_images_of_every_mode_and_size_alike(collate: ImageCollator, mode: str):
    images_of = [picture(0).resize((20, 12)).convert(mode), picture(1)]
    rows = images.with_stored_images([{"image": image} for image in images_of])
    assert collate(rows)["pixel_values"].shape == (2, 3, 8, 8)


def test_collator_gives_one_channel_to_a_model_of_grey_images():
    rows = [{"image": stored(picture(0, "RGB"))}]
    assert images.opened(rows[0]["image"], 1).mode == "L"
    assert images.opened(rows[0]["image"], 3).mode == "RGB"


def test_collator_counts_positions_as_tokens(collate: ImageCollator):
    collate.positions = 5
    assert collate.tokens_in(collate([{"image": stored(picture(0))}] * 3)) == (15, 15)
    assert collate.lengths([{}, {}]) == [5, 5]


def test_collator_names_an_image_that_breaks_off_behind_its_head(collate: ImageCollator):
    noise = images.random_image(0, size=64)
    cut = {"bytes": noise["bytes"][:2000], "path": None}
    with pytest.raises(InputError, match="image of 2000 bytes is broken"):
        collate([{"image": cut}])


def test_grey_image_reads_back_what_was_put_in():
    image = images.opened(images.grey_image(2, 2, [0, 64, 128, 255]), 1)
    assert list(image.tobytes()) == [0, 64, 128, 255]

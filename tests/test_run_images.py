"""Runs on images, from the command to the export; what reads text only is refused by name."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextConfig,
    SwinConfig,
)

from deltatune import parts
from deltatune.base import load_base
from deltatune.errors import InputError, NotComposable
from deltatune.exporting import export
from deltatune.run import Run, finetune
from tests.folders import classifications, model_folder
from tests.pictures import PROCESSOR, image_model_folder, picture_folder, pictures
from tests.runs import losses_of

TEXT_ONLY = ("imsm", "prefix_tuning")
RECIPES = tuple(name for name in parts.known("recipes") if name not in TEXT_ONLY)
SHORT = {"training.steps": 3, "training.batch_size": 4, "training.warmup": 0.0}


def run(model: Path, data: Any, recipe: str, output: Path, **changes: Any) -> Run:
    """A short run without a word."""
    settings = {**SHORT, **changes}
    quiet = Console(file=io.StringIO())
    return finetune(model, data, recipe, output=output, assignments=settings, console=quiet)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_model_folder(tmp_path_factory.mktemp("bases") / "vit")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_a_vision_transformer(vit: Path, tmp_path: Path, recipe: str):
    finished = run(vit, pictures(20), recipe, tmp_path / "run")
    assert finished.costs["optimizer_steps"] == 3
    assert finished.costs["tokens"] == 3 * 4 * 5  # four patches and the class token of each image
    assert 0 <= finished.after["accuracy"] <= 1
    assert len(losses_of(tmp_path / "run")) == 3


def test_lora_learns_which_side_is_bright(vit: Path, tmp_path: Path):
    changes = {"training.steps": 40, "training.epochs": 40, "optimizer.learning_rate": 1e-2}
    finished = run(vit, picture_folder(tmp_path / "sides"), "lora", tmp_path / "run", **changes)
    assert finished.after["accuracy"] == 1.0  # of the four images of the test folder
    assert finished.after["loss"] < 0.5 * finished.before["loss"]


def test_predicted_flops_of_a_vision_transformer_are_near_the_counted(vit: Path, tmp_path: Path):
    finished = run(vit, pictures(20), "full", tmp_path / "run")
    # The prediction leaves out the convolution that makes patches, much of a tiny model.
    assert finished.costs["micro_batch_flops_predicted_to_counted_ratio"] == pytest.approx(
        1, abs=0.15
    )


def test_merged_export_is_a_plain_model_with_its_image_processor(vit: Path, tmp_path: Path):
    run(vit, pictures(20), "lora", tmp_path / "run")
    written = export(tmp_path / "run", "merged")
    model = AutoModelForImageClassification.from_pretrained(written.folder)
    processor = AutoImageProcessor.from_pretrained(written.folder)
    assert model.config.id2label == {0: "left", 1: "right"}
    pixels = processor([row["image"].convert("RGB") for row in pictures(2)], return_tensors="pt")
    assert model(**pixels).logits.shape == (2, 2)


def test_images_train_in_bfloat16(vit: Path, tmp_path: Path):
    finished = run(
        vit, pictures(20), "lora", tmp_path / "run", **{"training.precision": "bfloat16"}
    )
    assert finished.costs["optimizer_steps"] == 3


def test_same_seed_gives_the_same_run_on_images(vit: Path, tmp_path: Path):
    data = picture_folder(tmp_path / "sides")
    whole = run(vit, data, "lora", tmp_path / "whole")
    again = run(vit, data, "lora", tmp_path / "again")
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "again")
    assert whole.after == again.after


def test_head_of_other_classes_is_drawn_anew_and_one_of_the_same_is_kept(tmp_path: Path):
    names = {"id2label": {0: "day", 1: "night"}, "label2id": {"day": 0, "night": 1}}
    folder = image_model_folder(tmp_path / "vit", **names)
    load = functools.partial(load_base, folder, task="image_classification")
    same = load(label_names=("day", "night"))
    other, again = (load(label_names=("left", "right")) for _ in range(2))
    stored = load_file(folder / "model.safetensors")["classifier.weight"]
    assert torch.equal(same.model.classifier.weight, stored)
    assert same.new_weights == ()
    assert other.new_weights == ("classifier.weight", "classifier.bias")
    assert not torch.equal(other.model.classifier.weight, stored)
    assert torch.equal(other.model.classifier.weight, again.model.classifier.weight)
    assert same.record.leaving_out(other.new_weights).fingerprint == other.fingerprint


def written(folder: Path, config: Any) -> Path:
    """A random model of this configuration, with an image processor, in `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), encoding="utf-8")
    return folder


def test_swin_trains_and_counts_the_patches_of_its_first_stage(tmp_path: Path):
    config = SwinConfig(
        image_size=8, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2
    )
    finished = run(written(tmp_path / "swin", config), pictures(20), "lora", tmp_path / "run")
    assert finished.costs["tokens"] == 3 * 4 * 16  # 4 x 4 patches of each image


def test_model_of_images_without_attention_is_refused_by_its_missing_roles(tmp_path: Path):
    config = ConvNextConfig(patch_size=2, hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    folder = written(tmp_path / "convnext", config)
    with pytest.raises(InputError, match="'query' cannot be found in a model of type 'convnext'"):
        run(folder, pictures(20), "lora", tmp_path / "run")


def test_prefix_tuning_refuses_a_model_of_images_by_name(vit: Path, tmp_path: Path):
    with pytest.raises(NotComposable, match=r"prefix tuning and ViTForImageClassification.*pixel"):
        run(vit, pictures(20), "prefix_tuning", tmp_path / "run")


def test_packing_refuses_images_by_name(vit: Path, tmp_path: Path):
    with pytest.raises(NotComposable, match="leave packing at auto"):
        run(vit, pictures(20), "lora", tmp_path / "run", **{"training.packing": "on"})


def test_model_of_text_refuses_images_and_the_other_way_round(vit: Path, tmp_path: Path):
    text = model_folder(tmp_path / "llama")
    with pytest.raises(InputError, match=r"\(llama\) reads no images.*such as ViT"):
        run(text, pictures(20), "lora", tmp_path / "run")
    with pytest.raises(InputError, match=r"\(vit\) reads images.*a model that reads text"):
        run(vit, classifications(20), "lora", tmp_path / "run")


def test_model_without_an_image_processor_is_refused(tmp_path: Path):
    folder = image_model_folder(tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="does not load: Can't load image processor"):
        run(folder, pictures(20), "lora", tmp_path / "run")


def test_processor_of_another_size_is_told_before_training(tmp_path: Path):
    folder = image_model_folder(tmp_path / "vit", image_size=16)
    with pytest.raises(InputError, match="image processor belongs to it"):
        run(folder, pictures(20), "lora", tmp_path / "run")
    assert not (tmp_path / "run").exists()

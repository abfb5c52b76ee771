"""LoCA as a recipe: its turns, what it trains, its limits, and what learnt places capture."""

from __future__ import annotations

import json
import math

import numpy as np
import peft
import pytest
import torch
from rich.console import Console

from deltatune import Recipe, recipe, sites
from deltatune.bridges.carriers import carrier_of
from deltatune.bridges.names import trained_parameters
from deltatune.bridges.progress import Progress
from deltatune.deltas.cosine import CosineDelta, CosineSpectrum
from deltatune.errors import InputError, NotMergeable
from deltatune.exporting import load
from deltatune.orthonormal import BASES
from deltatune.run import finetune
from deltatune.run_folder import RunFolder
from deltatune.selections.by_role import ByRole
from deltatune.updates.groups import plan_groups
from tests.adapters import logits_of, shaken
from tests.folders import completions, model_folder
from tests.models import tiny
from tests.runs import adapter_of, losses_of

SMALL = {"delta.coefficients": 6}


def spectral(model):
    return [module for module in model.modules() if isinstance(module, CosineDelta)]


def test_groups_give_locations_their_own_rate_without_decay():
    base = tiny("llama", "causal_lm")
    places = sites.of(base)
    chosen = recipe.named("loca").with_fields({**SMALL, "optimizer.weight_decay": 0.1})
    model = chosen.prepare(base)
    parameters = trained_parameters(model, places)
    groups = plan_groups(parameters, chosen.update, places, learning_rate=5e-3, weight_decay=0.1)
    rates = {group.label: (group.learning_rate, group.weight_decay) for group in groups}
    assert {decay for _, decay in rates.values()} == {0.0, 0.1}
    of_places = [rate for rate, decay in rates.values() if not decay]
    assert of_places == pytest.approx([0.077] * len(of_places))
    assert {rate for rate, decay in rates.values() if decay} == {5e-3}


def test_locations_do_not_decay_under_any_rule():
    base = tiny("llama", "causal_lm")
    places = sites.of(base)
    chosen = Recipe(delta=CosineSpectrum(coefficients=6))
    parameters = trained_parameters(chosen.prepare(base), places)
    groups = plan_groups(parameters, chosen.update, places, learning_rate=1e-3, weight_decay=0.1)
    decays = {
        name.rpartition(".")[2]: group.weight_decay for group in groups for name in group.names
    }
    assert decays == {"coefficients": 0.1, "locations": 0.0}


def test_value_ratio_speeds_up_coefficients_and_no_locations():
    base = tiny("llama", "causal_lm")
    places = sites.of(base)
    host = recipe.named("loca").with_fields(SMALL)
    chosen = recipe.named("efficientft", {"host": host, "value_learning_rate_ratio": 4.0})
    parameters = trained_parameters(chosen.prepare(base), places)
    groups = plan_groups(parameters, chosen.update, places, learning_rate=1.0, weight_decay=0.0)
    rates = {}
    for group in groups:
        for name in group.names:
            role = "value" if "v_proj" in name else "query"
            rates[role, name.rpartition(".")[2]] = group.learning_rate
    assert rates["value", "coefficients"] == 4 * rates["query", "coefficients"]
    assert rates["value", "locations"] == rates["query", "locations"]


def test_a_run_trains_by_turns_and_can_be_exported(tmp_path):
    chosen = recipe.named("loca", {"coefficient_steps": 2, "location_steps": 3, "until": 10})
    training = {"training.steps": 14, "training.batch_size": 4, "training.max_length": 32}
    run = finetune(
        model_folder(tmp_path / "llama"),
        completions(80),
        chosen,
        output=tmp_path / "run",
        assignments={**SMALL, **training},
    )
    rows = RunFolder(run.folder).read_metrics()
    assert len(rows) == 14
    assert run.after["loss"] < run.before["loss"]
    # Two layers, query and value: 6 coefficients each, and a row and a column of each.
    assert run.costs["trainable_parameters_ever"] == 2 * 2 * 18
    assert run.costs["trainable_parameters"] == 2 * 2 * 6
    by_place = run.costs["delta_by_place"]
    assert len(by_place) == 4
    for figures in by_place.values():
        assert figures["coefficients"] == 6
        assert figures["row_largest_cells"] <= 1  # 6 steps of 0.077 cells, warmed up
        assert figures["way_by_tokens"]
        assert set(figures["way_by_tokens"].values()) <= {"factored", "transform", "sparse"}
    assert json.loads((run.folder / "costs.json").read_text())["delta_by_place"] == by_place


@pytest.mark.parametrize("steps", [3, 5])
def test_resume_in_the_middle_of_a_cycle_moves_the_same_locations(
    tmp_path, monkeypatch, steps, llama, pairs
):
    chosen = recipe.named("loca", {"coefficient_steps": 2, "location_steps": 3, "until": 10})
    training = {
        "training.steps": 8,
        "training.batch_size": 4,
        "training.accumulation": 2,
        "training.epochs": 4,
        "training.checkpoint_every": 1,
        "training.max_length": 32,
    }

    def run(output, *, resume=False):
        given = {**SMALL, **training, "delta.locations": "gradient"}
        return finetune(
            llama,
            pairs,
            chosen,
            output=output,
            assignments=given,
            resume=resume,
            console=Console(quiet=True),
        )

    whole = run(tmp_path / "whole")

    def stop(self, args, state, control, **kwargs):
        if state.global_step == steps:  # among the steps of locations, and after them
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "on_step_begin", stop, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.undo()
    again = run(tmp_path / "run", resume=True)
    wanted, given = adapter_of(whole.folder), adapter_of(again.folder)
    assert wanted.keys() == given.keys()
    assert all(torch.equal(wanted[name], given[name]) for name in wanted)
    assert any(name.endswith("locations") for name in wanted)
    assert losses_of(whole.folder) == losses_of(again.folder)


def test_limit_without_locations_is_the_transform_at_fixed_places():
    chosen = recipe.named("loca", {"until": 0}).with_fields(SMALL)
    model = chosen.prepare(tiny("llama", "causal_lm"))
    assert all(not isinstance(one.locations, torch.nn.Parameter) for one in spectral(model))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all(name.endswith("coefficients") for name in names)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_model_gives_what_the_adapter_gave(name):
    """On GPT-2 the weight is fused and stored transposed."""
    chosen = recipe.named("loca").with_fields({**SMALL, "delta.coefficients": 20})
    base = tiny(name, "causal_lm")
    before = {key: value.clone() for key, value in base.named_parameters()}
    model = shaken(chosen.prepare(base))
    wanted = logits_of(model)
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), wanted, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits_of(model), wanted)
    assert all(torch.equal(base.get_parameter(key), value) for key, value in before.items())


def test_rows_of_the_spectrum_belong_to_outputs():
    base = tiny("llama", "causal_lm", hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    chosen = Recipe(
        delta=CosineSpectrum(coefficients=6, values="normal"), selection=ByRole(roles=("value",))
    )
    model = chosen.prepare(base)
    for one in spectral(model):
        assert (one.out_features, one.in_features) == (16, 32)
        assert int(one.cells()[0].max()) < 16


def test_two_adapters_add():
    base = tiny("llama", "causal_lm")
    chosen = recipe.named("loca").with_fields(SMALL)
    model = shaken(chosen.prepare(base))
    (layer, *_) = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    first = layer.get_delta_weight("default")
    config = model.peft_config["default"]
    model.add_adapter("second", type(config)(**{**config.to_dict(), "seed": 7}))
    own = layer.deltas("second")[0].delta
    with torch.no_grad():
        own.coefficients.normal_(generator=torch.Generator().manual_seed(1))
    second = layer.get_delta_weight("second")
    model.base_model.set_adapter(["default", "second"])
    inputs = torch.randn(3, own.in_features)
    base_output = layer.base_layer(inputs)
    torch.testing.assert_close(
        layer(inputs), base_output + inputs @ (first + second).T, rtol=0, atol=1e-5
    )


def test_fourier_basis_is_peft_s_fourierft():
    base = tiny("llama", "causal_lm")
    width = base.config.hidden_size
    config = peft.FourierFTConfig(
        n_frequency=12, scaling=150.0, target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(tiny("llama", "causal_lm"), config)
    their_layer = next(m for m in theirs.modules() if hasattr(m, "fourierft_spectrum"))
    # Their inverse transform divides by all entries, the unitary one by the root of them.
    options = CosineSpectrum(
        coefficients=12, basis="fourier", scale=150.0 / width, locations="distinct"
    )
    ours = Recipe(delta=options, selection=ByRole(roles=("query",))).prepare(base)
    own = spectral(ours)[0]
    with torch.no_grad():
        indices = their_layer.indices["default"].to(torch.int64)
        own.locations.copy_(own.rule.of_cells(indices))
        own.coefficients.copy_(their_layer.fourierft_spectrum["default"])
    wanted = their_layer.get_delta_weight("default")
    found = own.delta_weight(torch.zeros(width, width))
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def captured(target, shares, *, learns, seed_steps=1000, until=600):
    """Return the share of a target that training on it captures (card loca, check 14)."""
    options = CosineSpectrum(
        coefficients=32, location_unit="share", learns_locations=learns, way="dense"
    )
    delta = CosineDelta(options, torch.zeros(32, 32), "toy").double()
    with torch.no_grad():
        delta.locations.copy_(torch.from_numpy(shares))
    groups = [{"params": [delta.coefficients], "lr": 5e-2}]
    if learns:
        groups.append({"params": [delta.locations], "lr": 5e-3})
    optimizer = torch.optim.Adam(groups)
    for step in range(seed_steps):
        moves_places = learns and step < until and step % 30 >= 10
        optimizer.zero_grad()
        delta.coefficients.requires_grad_(not moves_places)
        if learns:
            delta.locations.requires_grad_(moves_places)
        change = delta.delta_weight(torch.zeros(32, 32))
        (0.5 * (change - target).square().sum()).backward()
        optimizer.step()
    change = delta.delta_weight(torch.zeros(32, 32)).detach()
    return 1 - ((change - target).square().sum() / target.square().sum()).item()


def drawn(seed, kind):
    """Return shares and target in the card's order of draws."""
    rng = np.random.default_rng(seed)
    shares = rng.random((2, 32))
    if kind == "iid":
        return shares, torch.from_numpy(rng.standard_normal((32, 32)))
    centres, signs = rng.uniform(0, 31, (6, 2)), rng.choice([-1, 1], 6)
    rows, columns = np.mgrid[0:32, 0:32]
    spectrum = sum(
        sign * np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (2 * 2.5**2))
        for (r, c), sign in zip(centres, signs, strict=True)
    )
    basis = BASES["cosine"]
    whole = torch.from_numpy(spectrum)
    return shares, basis.matrix(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fixed", "learned", "factor"),
    [("iid", 0.0314, 0.0537, 1.4), ("bumps", 0.0309, 0.1961, 5)],
)
def test_learnt_locations_capture_more_over_eight_seeds(kind, fixed, learned, factor):
    means = []
    for learns in (False, True):
        shares = [captured(t, u, learns=learns) for u, t in (drawn(s, kind) for s in range(8))]
        means.append(sum(shares) / len(shares))
    print(kind, means)
    assert means[0] == pytest.approx(fixed, abs=0.002)
    assert means[1] > factor * means[0]
    assert means[1] == pytest.approx(learned, rel=0.15)


@pytest.mark.parametrize(("kind", "factor"), [("iid", 1.2), ("bumps", 3.8)])
def test_learnt_locations_capture_more(kind, factor):
    shares, target = drawn(0, kind)
    still = captured(target, shares, learns=False, seed_steps=500, until=300)
    moved = captured(target, shares, learns=True, seed_steps=500, until=300)
    assert moved > factor * still


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"coefficient_steps": 0}, "steps=0 is not allowed"),
        ({"location_steps": 0}, "steps=0 is not allowed"),
        ({"scale": -1.0}, "scale=-1.0 is not allowed"),
        ({"location_learning_rate": -1.0}, "location_learning_rate=-1 is not allowed"),
        ({"location_learning_rate": math.inf}, "location_learning_rate=inf is not allowed"),
        ({"learning_rate": 0.0}, "learning_rate=0 is not allowed"),
        ({"learning_rate": -1.0}, "learning_rate=-1 is not allowed"),
        ({"learning_rate": math.nan}, "learning_rate=nan is not allowed"),
        ({"until": -0.5}, "until=-0.5 is not allowed"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        recipe.named("loca", parameters)


def test_more_coefficients_than_entries_are_refused_with_the_place():
    with pytest.raises(InputError, match=r"q_proj.* x .* entries, give at most"):
        recipe.named("loca", {"coefficients": 10**7}).prepare(tiny("llama", "causal_lm"))


def test_conversion_to_lora_is_refused_by_name(tmp_path):
    chosen = recipe.named("loca").with_fields(SMALL)
    model = chosen.prepare(tiny("llama", "causal_lm"))
    with pytest.raises(NotMergeable, match="no LoRA equals it"):
        carrier_of(chosen.delta).save_as_lora(model, tmp_path)


def test_a_run_begins_where_the_gradient_is_largest(tmp_path):
    chosen = recipe.named("loca", {"locations": "gradient", "coefficient_steps": 2, "until": 4})
    training = {"training.steps": 6, "training.batch_size": 4, "training.max_length": 32}
    run = finetune(
        model_folder(tmp_path / "llama"),
        completions(80),
        chosen,
        output=tmp_path / "run",
        assignments={**SMALL, **training},
    )
    assert run.after["loss"] < run.before["loss"]
    drawn_at_random = recipe.named("loca").with_fields(SMALL)
    cells = [one.cells() for one in spectral(drawn_at_random.prepare(tiny("llama", "causal_lm")))]
    folder = RunFolder(run.folder)
    tuned = spectral(load(run.folder))
    assert folder.is_finished
    assert [one.cells().shape for one in tuned] == [one.shape for one in cells]
    assert all(not torch.equal(one.cells(), other) for one, other in zip(tuned, cells, strict=True))
    assert all(bool((one.coefficients != 0).all()) for one in tuned)

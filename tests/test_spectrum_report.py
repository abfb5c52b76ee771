"""The spectra of real small runs and of differences of checkpoints, as files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy.fft import idctn

from deltatune import WeightDelta
from deltatune.errors import InputError, NotMergeable
from deltatune.matrix_spectra import cosine_spectrum, log_density
from deltatune.reports.spectra import LeftOut, WeightSpectrum, spectra
from deltatune.run import finetune
from deltatune.spectrum_report import write_spectrum_report
from tests.browser import browser, chromium
from tests.models import tiny
from tests.runs import SETTINGS
from tests.training import PEFT_ASKS_OLD_NAME

pytestmark = PEFT_ASKS_OLD_NAME
FILES = ["spectra.html", "spectra.json"]
DRAWN = ["spectra.png", "spectra.svg", "captured_energy.png", "captured_energy.svg"]
IN_PLACE = {key: value for key, value in SETTINGS.items() if not key.startswith("delta.")}


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "spectra.json").read_text(encoding="utf-8"))
    return found


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_report_of_a_lora_run_shows_its_rank(llama: Path, pairs: Path, tmp_path: Path) -> None:
    run = finetune(llama, pairs, "lora", output=tmp_path / "run", assignments=SETTINGS)
    written = write_spectrum_report(run.folder, tmp_path / "out", rank=2, draws=99)
    assert [path.name for path in written] == [*FILES, *DRAWN]
    report = read(tmp_path / "out")
    assert report["title"] == "Spectra of run"
    assert report["left_out"] == {}
    assert {one["name"].split(".")[-2] for one in report["weights"]} >= {"q_proj", "v_proj"}
    base = load_file(llama / "model.safetensors")
    for one in report["weights"]:
        figures = one["figures"]
        assert one["shape"] == list(base[one["name"]].shape)
        assert figures["rank_energy_ratio"] == pytest.approx(1.0, abs=1e-6)
        assert figures["p_value"] == pytest.approx(0.01)
        ratio = figures["norm"] / float(base[one["name"]].norm())
        assert figures["to_weight_norm_ratio"] == pytest.approx(ratio, rel=1e-5)


def test_report_of_full_tuning_leaves_vectors_out(llama: Path, pairs: Path, tmp_path: Path) -> None:
    run = finetune(llama, pairs, "full", output=tmp_path / "run", assignments=IN_PLACE)
    write_spectrum_report(run.folder, tmp_path / "out", draws=99)
    report = read(tmp_path / "out")
    change = load_file(run.folder / "adapter" / "delta.safetensors")
    names = {one["name"] for one in report["weights"]}
    assert names
    assert names <= set(change)
    for one in report["weights"]:
        assert one["figures"]["norm"] == pytest.approx(float(change[one["name"]].norm()), rel=1e-5)
        assert one["figures"]["to_weight_norm_ratio"] > 0
        assert one["figures"]["rank_energy_ratio"] < 1 - 1e-6


def test_report_refuses_a_run_without_changes_of_weights(
    llama: Path, pairs: Path, tmp_path: Path
) -> None:
    settings = {"training.steps": 1, "training.batch_size": 2}
    run = finetune(llama, pairs, "prefix_tuning", output=tmp_path / "run", assignments=settings)
    with pytest.raises(NotMergeable):
        write_spectrum_report(run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_report_of_a_difference_of_checkpoints_needs_no_run(tmp_path: Path) -> None:
    first, second = tiny("llama", "causal_lm"), tiny("llama", "causal_lm", seed=1)
    delta = WeightDelta.from_difference(first, second)
    write_spectrum_report(
        delta, tmp_path / "out", base_weights=first.state_dict(), title="Two seeds", draws=99
    )
    report = read(tmp_path / "out")
    assert report["title"] == "Two seeds"
    assert len(report["weights"]) == sum(p.ndim == 2 for p in first.parameters())
    assert sum(len(names) for names in report["left_out"].values()) == sum(
        p.ndim == 1 for p in first.parameters()
    )
    # Two draws of independent weights differ by iid Gaussian entries, sqrt(2) times as large.
    inner = [one["figures"] for one in report["weights"] if ".layers." in one["name"]]
    assert sum(one["p_value"] > 0.05 for one in inner) >= 0.8 * len(inner)
    ratios = [one["to_weight_norm_ratio"] for one in inner]
    assert ratios == pytest.approx([math.sqrt(2)] * len(inner), rel=0.1)


def test_spectra_are_made_one_weight_at_a_time() -> None:
    asked = []

    class Watched(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.append(name)
            return super().__getitem__(name)

    delta = WeightDelta(Watched(a=gaussian(6, 4), b=gaussian(4, 6)))
    rows = spectra(delta, draws=19)
    first = next(rows)
    assert first.name == "a"
    assert "b" not in asked
    assert next(rows).name == "b"


def test_spectra_say_why_a_change_is_left_out() -> None:
    delta = WeightDelta(
        {
            "bias": torch.ones(4),
            "kernel": torch.ones(2, 3, 4),
            "still": torch.zeros(4, 4),
            "thin": torch.ones(1, 4),
            "large": torch.ones(10, 10),
            "weight": gaussian(8, 4),
        }
    )
    found = {one.name: one for one in spectra(delta, draws=19, largest_cells=99)}
    reasons = {one.name: one.reason for one in found.values() if isinstance(one, LeftOut)}
    assert reasons == {
        "bias": "a vector",
        "kernel": "a tensor of 3 axes",
        "still": "unchanged",
        "thin": "a single row or column",
        "large": "more than 99 entries",
    }
    weight = found["weight"]
    assert isinstance(weight, WeightSpectrum)
    assert weight.row["rank"] == 4  # 8 is more than it has


def test_cosine_spectrum_finds_the_cells_of_a_change() -> None:
    cells = torch.zeros(12, 10)
    cells[3, 1], cells[7, 9] = 2.0, -0.5
    change = torch.from_numpy(idctn(cells.numpy(), norm="ortho"))
    assert torch.allclose(cosine_spectrum(change), cells, atol=1e-6)
    density = log_density(cosine_spectrum(change), bins=4)  # 3 rows and 2 or 3 columns a bin
    assert density.shape == (4, 4)
    mean = (4 + 0.25) / 120
    assert float(density[1, 0]) == pytest.approx(math.log10(4 / 9 / mean), abs=1e-5)
    assert float(density[2, 3]) == pytest.approx(math.log10(0.25 / 6 / mean), abs=1e-5)
    assert int((density < -7.9).sum()) == 14


def test_density_of_bins_keeps_the_energy() -> None:
    spectrum = gaussian(70, 131)
    density = log_density(spectrum)
    assert density.shape == (64, 64)
    rows = (torch.arange(70) * 64 // 70).bincount().double()
    columns = (torch.arange(131) * 64 // 131).bincount().double()
    whole = (10.0 ** density.double() * rows[:, None] * columns).sum() / spectrum.numel()
    assert float(whole) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 is not allowed"),
        ({"draws": 3}, "draws=3 is not allowed"),
        ({"largest_cells": -1}, "largest_cells=-1 is not allowed"),
    ],
)
def test_report_refuses_options_before_it_writes(
    tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_spectrum_report(WeightDelta({"a": gaussian(4, 4)}), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_report_refuses_what_is_no_change(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no changes"):
        write_spectrum_report(WeightDelta({}), tmp_path)
    broken = WeightDelta({"layer.weight": torch.full((3, 3), float("inf"))})
    with pytest.raises(InputError, match=r"layer\.weight: the change holds entries"):
        write_spectrum_report(broken, tmp_path)
    with pytest.raises(InputError, match="no finished run"):
        write_spectrum_report(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="base_weights given beside the run"):
        write_spectrum_report(tmp_path, tmp_path / "out", base_weights={})


def test_report_of_vectors_alone_draws_nothing(tmp_path: Path) -> None:
    written = write_spectrum_report(WeightDelta({"bias": torch.ones(3)}), tmp_path)
    assert [path.name for path in written] == FILES
    assert "No weight of this delta has a spectrum" in (tmp_path / "spectra.html").read_text()


def test_page_escapes_names_and_embeds_everything(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    write_spectrum_report(WeightDelta({hostile: gaussian(4, 4)}), tmp_path, draws=19)
    text = (tmp_path / "spectra.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in text


@pytest.mark.skipif(chromium() is None, reason="no Chromium in PATH")
def test_page_draws_and_follows_the_chosen_weight(tmp_path: Path) -> None:
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    low_rank = gaussian(48, 2) @ gaussian(2, 80, seed=1)
    delta = WeightDelta({"a.weight": low_rank, "b.weight": 0.1 * gaussian(96, 64)})
    write_spectrum_report(delta, tmp_path / "out", draws=99)
    with browser(tmp_path) as chrome:
        chrome.show(tmp_path / "out" / "spectra.html", width=500)
        chrome.wait_for("document.querySelectorAll('.plot .main-svg').length >= 2")
        assert chrome.evaluate("document.querySelector('#weight').value") == "a.weight"
        shown = "document.querySelector('#spectrum-plot').data[0].z.length"
        assert chrome.evaluate(shown) == 48
        chrome.choose("#weight", "b.weight", "change")
        assert chrome.evaluate(shown) == 64
        assert chrome.evaluate("document.querySelector('#energy-plot').data.length") == 8
        assert chrome.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert chrome.complaints == []
        assert [one for one in chrome.requests if not one.startswith(("file:", "data:"))] == []

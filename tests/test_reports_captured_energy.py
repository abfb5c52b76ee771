"""Check 13 of the card on LoCA: what a rank keeps of a change, and what as many cells keep."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from deltatune.errors import InputError
from deltatune.matrix_spectra import squared_singular_values
from deltatune.reports.captured_energy import (
    captured_energy,
    curve_ranks,
    energy_rows,
    gaussian_captured_energy,
)

# K, r -> rank r, random 2 K r cells, best 2 K r, best 2 K r / 3; as the card prints them.
CARD = {
    (64, 4): (0.213, 0.125, 0.502, 0.246),
    (64, 16): (0.627, 0.500, 0.929, 0.591),
    (128, 8): (0.210, 0.125, 0.502, 0.246),
    (256, 4): (0.059, 0.031, 0.200, 0.087),
    (256, 16): (0.211, 0.125, 0.502, 0.246),
    (768, 1): (0.0052, 0.0026, 0.0284, 0.0113),
    (768, 8): (0.040, 0.021, 0.149, 0.063),
    (768, 16): (0.077, 0.042, 0.246, 0.109),
}


def ratios(row: Mapping[str, str | int | float]) -> list[float]:
    return [float(value) for name, value in row.items() if name.endswith("_energy_ratio")]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side_and_rank", CARD)
def test_closed_form_gives_the_table_of_the_card(side_and_rank: tuple[int, int]) -> None:
    side, rank = side_and_rank
    row = gaussian_captured_energy((side, side), rank=rank)
    # The limit of large matrices: the largest eigenvalues of side 64 hold 0.004 more.
    assert ratios(row) == pytest.approx(CARD[side_and_rank], abs=0.005)


@pytest.mark.parametrize("side", [64, 128, 256, 768])
def test_gaussian_matrices_give_the_table_of_the_card(side: int) -> None:
    ranks = [rank for known, rank in CARD if known == side]
    measured = []
    for seed in range(-(-512 // side)):  # one small matrix strays by as much as the tolerance
        change = gaussian(side, side, seed=seed)
        spectrum = torch.from_numpy(dctn(change.numpy(), norm="ortho"))
        rows = energy_rows(squared_singular_values(change), spectrum, ranks)
        measured.append([ratios(row) for row in rows])
    for rank, found in zip(ranks, np.mean(measured, axis=0), strict=True):
        assert found == pytest.approx(CARD[side, rank], abs=0.01)  # the card's tolerance


def test_energies_equal_those_of_an_svd_and_of_scipy_s_transform() -> None:
    change = gaussian(20, 12) @ torch.diag(torch.linspace(0.1, 3, 12))
    row = captured_energy(change, rank=3)
    squared = torch.linalg.svdvals(change.double()).square()
    assert row["rank_energy_ratio"] == pytest.approx(float(squared[:3].sum() / squared.sum()))
    cells = np.sort(dctn(change.double().numpy(), norm="ortho").ravel() ** 2)[::-1]
    assert row["cells"] == 3 * (20 + 12)
    # float32 in the transform.
    best = cells[:96].sum() / cells.sum()
    assert row["best_cells_energy_ratio"] == pytest.approx(best, rel=1e-6)
    located = cells[:32].sum() / cells.sum()
    assert row["best_located_cells_energy_ratio"] == pytest.approx(located, rel=1e-6)
    assert row["random_cells_energy_ratio"] == 96 / 240


def test_low_rank_change_is_kept_whole_by_its_rank_and_a_cosine_by_one_cell() -> None:
    change = gaussian(30, 2) @ gaussian(2, 18, seed=1)
    row = captured_energy(change, rank=2)
    assert row["rank_energy_ratio"] == pytest.approx(1.0, abs=1e-9)
    assert float(row["best_cells_energy_ratio"]) < 0.99
    wave = torch.cos(torch.pi * (2 * torch.arange(16) + 1) * 3 / 32)
    row = captured_energy(torch.outer(torch.ones(8), wave), rank=1)
    assert row["best_located_cells_energy_ratio"] == pytest.approx(1.0, abs=1e-6)


def test_random_cells_keep_their_share_in_the_mean_of_many_draws() -> None:
    change = gaussian(16, 16) + 3.0  # one large coefficient: the mean must hold for any matrix
    energy = torch.from_numpy(dctn(change.numpy(), norm="ortho")).flatten().square()
    row = captured_energy(change, rank=2)
    generator = torch.Generator().manual_seed(0)
    draws = [energy[torch.randperm(256, generator=generator)[:64]].sum() for _ in range(4000)]
    share = float(torch.stack(draws).mean() / energy.sum())
    # The one coefficient is in or out: standard error sqrt(.25 * .75 / 4000) = 0.007.
    assert row["random_cells_energy_ratio"] == pytest.approx(share, abs=0.025)


def test_curve_rises_to_one_and_a_row_of_it_is_the_report() -> None:
    change = gaussian(24, 40)
    ranks = curve_ranks((24, 40))
    assert ranks[0] == 1
    assert ranks[-1] == 24
    assert ranks == sorted(set(ranks))
    squared = torch.linalg.svdvals(change.double()).square()
    spectrum = torch.from_numpy(dctn(change.numpy(), norm="ortho"))
    curve = energy_rows(squared, spectrum, ranks)
    for name in ("rank_energy_ratio", "best_cells_energy_ratio", "random_cells_energy_ratio"):
        values = [float(row[name]) for row in curve]
        assert values == sorted(values)
        assert values[-1] == pytest.approx(1.0)
    assert curve[3] == pytest.approx(captured_energy(change, rank=ranks[3]))


@pytest.mark.parametrize(
    ("change", "rank", "message"),
    [
        (torch.ones(3), 1, r"shape \[3\] has no spectrum: give a matrix"),
        (torch.zeros(3, 3), 1, "0 everywhere"),
        (torch.full((3, 3), float("nan")), 1, "not finite"),
        (torch.ones(3, 5), 4, r"rank=4 is not allowed: give an integer from 1 to 3"),
        (torch.ones(3, 5), 0, "rank=0 is not allowed"),
    ],
)
def test_captured_energy_refuses_what_has_no_answer(
    change: torch.Tensor, rank: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        captured_energy(change, rank=rank)

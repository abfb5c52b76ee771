"""The test of Gaussianity: Gaussian changes pass as often as they should, others do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

from deltatune.errors import InputError
from deltatune.marchenko_pastur import cumulative, support, top_energy
from deltatune.reports.gaussianity import gaussianity
from deltatune.wishart import eigenvalue_counts


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [0.1, 0.6, 1.0])
def test_law_in_closed_form_is_the_integral_of_its_density(ratio: float) -> None:
    low, high = support(ratio)

    def density(x: float) -> float:
        return float(np.sqrt((high - x) * (x - low)) / (2 * np.pi * ratio * x))

    for part in (0.2, 0.5, 0.9):
        bound = low + part * (high - low)
        below = quad(density, low, bound)[0]
        assert float(cumulative(np.array(bound), ratio)) == pytest.approx(below, abs=1e-6)
        above = quad(lambda x: x * density(x), bound, high)[0]
        assert top_energy(1 - below, ratio) == pytest.approx(above, abs=1e-6)
    assert cumulative(np.array([low - 1, low, high, high + 1]), ratio).tolist() == [0, 0, 1, 1]
    assert (top_energy(0.0, ratio), top_energy(1.0, ratio)) == (0.0, 1.0)


def test_counts_have_the_means_of_real_gaussian_matrices() -> None:
    longer, shorter, draws = 12, 5, 4000
    edges = np.array([0.2, 0.6, 1.0, 1.7, 2.5])
    drawn = eigenvalue_counts(longer, shorter, edges, draws=draws)
    assert drawn.shape == (draws, 6)
    assert (drawn.sum(axis=1) == shorter).all()
    real = gaussian(draws, longer, shorter).double()
    values = torch.linalg.eigvalsh(real.mT @ real)
    values = (values / values.mean(dim=1, keepdim=True)).numpy()
    bounds = [-np.inf, *edges, np.inf]
    counted = np.stack([np.histogram(row, bounds)[0] for row in values])
    # Counts of a bin vary by less than 1, so their means by sqrt(2 / 4000) = 0.022; 4 times that.
    assert np.abs(drawn.mean(axis=0) - counted.mean(axis=0)).max() < 0.09
    assert np.abs(drawn.std(axis=0) - counted.std(axis=0)).max() < 0.09


def test_counts_are_those_of_the_matrix_s_eigenvalues() -> None:
    # Of one row there is one eigenvalue, and it is its own mean.
    assert eigenvalue_counts(7, 1, np.array([0.5, 1.5]), draws=3).tolist() == [[0, 1, 0]] * 3
    wide = eigenvalue_counts(40, 20, np.array([0.0, 100.0]), draws=5)
    assert wide.tolist() == [[0, 20, 0]] * 5


def test_counts_are_the_same_for_the_same_seed() -> None:
    edges = np.linspace(0.2, 2.0, 9)
    first, same, other = (
        eigenvalue_counts(30, 20, edges, draws=50, seed=seed) for seed in (3, 3, 4)
    )
    assert (first == same).all()
    assert (first != other).any()


def test_p_values_of_gaussian_changes_are_uniform_over_seeds() -> None:
    found = [
        gaussianity(gaussian(48, 32, seed=seed) * 7e-4, draws=200)["p_value"] for seed in range(200)
    ]
    # All are drawn against the same 200 matrices, which itself moves them by about 0.07.
    assert kstest(found, "uniform").statistic < 0.15
    assert 0.01 < np.mean(np.array(found) <= 0.05) < 0.11


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96), (300, 300)])
def test_gaussian_change_is_not_rejected_and_a_low_rank_one_is(shape: tuple[int, int]) -> None:
    row = gaussianity(gaussian(*shape), draws=200)
    assert float(row["p_value"]) > 0.05
    assert float(row["total_variation"]) < 0.5  # 32 eigenvalues in 50 bins
    assert float(row["largest_to_edge_ratio"]) == pytest.approx(1.0, abs=0.15)
    assert abs(float(row["excess_kurtosis"])) < 0.3
    low_rank = gaussian(shape[0], 4) @ gaussian(4, shape[1], seed=1)
    row = gaussianity(low_rank, draws=200)
    assert row["p_value"] == pytest.approx(1 / 201)
    assert float(row["total_variation"]) > 0.8
    assert float(row["largest_to_edge_ratio"]) > 2


def test_test_does_not_depend_on_scale_or_orientation() -> None:
    change = gaussian(40, 24) + 0.3 * gaussian(40, 1) @ gaussian(1, 24, seed=2)
    row = gaussianity(change, draws=99)
    assert gaussianity(change.T * 1e-5, draws=99) == pytest.approx(row, rel=1e-4)


def test_kurtosis_tells_what_singular_values_cannot() -> None:
    signs = gaussian(64, 64).sign()
    row = gaussianity(signs, draws=99)
    assert float(row["p_value"]) > 0.05
    assert float(row["excess_kurtosis"]) == pytest.approx(-2.0, abs=0.01)


def test_large_changes_are_tested_in_seconds_not_hours() -> None:
    # 1,000 matrices of this size would be 4 GB of numbers; the test must not make them.
    counts = eigenvalue_counts(2000, 500, np.linspace(0.1, 2.7, 49), draws=1000)
    assert counts.shape == (1000, 50)
    assert (counts.sum(axis=1) == 500).all()


def test_gaussianity_refuses_too_few_draws() -> None:
    with pytest.raises(InputError, match="draws=5 is not allowed: give at least 19"):
        gaussianity(gaussian(4, 4), draws=5)

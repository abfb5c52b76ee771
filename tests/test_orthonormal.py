"""Orthonormal bases: rows, fast transforms and their inverses agree, for all sizes."""

from __future__ import annotations

import pytest
import scipy.fft
import torch

from deltatune.errors import InputError
from deltatune.orthonormal import BASES

SIZES = {"cosine": (1, 2, 3, 4, 5, 7, 8, 12, 768), "fourier": (1, 3, 4, 7, 8), "rotation": (3, 8)}
SIZES["hadamard"] = (1, 2, 8, 12, 20, 24, 28, 768)
SIZES["fourier_imaginary"] = SIZES["fourier"]
CASES = [(name, size) for name in BASES for size in SIZES[name]]


def whole(name, size, dtype=torch.float64):
    return BASES[name].rows(size, torch.arange(size), dtype)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_rows_are_orthonormal(name, size):
    rows = whole(name, size)
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close((rows @ rows.mH).real, identity, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_transforms_are_products_with_all_rows(name, size):
    rows = whole(name, size)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 3, size, generator=generator, dtype=torch.float64)
    basis = BASES[name]
    found = basis.analysis(vectors)
    torch.testing.assert_close(found, vectors.to(rows.dtype) @ rows.T, rtol=0, atol=1e-12)
    sums = basis.synthesis(vectors)
    torch.testing.assert_close(sums, vectors.to(rows.dtype) @ rows, rtol=0, atol=1e-12)


def test_cosine_rows_are_those_of_the_card():
    four = [
        [0.5, 0.5, 0.5, 0.5],
        [0.653281, 0.270598, -0.270598, -0.653281],
        [0.5, -0.5, -0.5, 0.5],
        [0.270598, -0.653281, 0.653281, -0.270598],
    ]
    three = [
        [0.57735, 0.57735, 0.57735],
        [0.707107, 0, -0.707107],
        [0.408248, -0.816497, 0.408248],
    ]
    for rows in (four, three):
        wanted = torch.tensor(rows, dtype=torch.float64)
        torch.testing.assert_close(whole("cosine", len(rows)), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [4, 8, 768])
def test_cosine_is_that_of_scipy(size):
    identity = torch.eye(size, dtype=torch.float64)
    # Of the identity's columns: scipy transforms along an axis, M is what it multiplies with.
    wanted = torch.from_numpy(scipy.fft.dct(identity.numpy(), type=2, norm="ortho", axis=0))
    torch.testing.assert_close(whole("cosine", size), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [768, 4096])
def test_cosine_rows_keep_their_digits_in_float32(size):
    indices = torch.tensor([0, 1, size // 2, size - 1])
    exact = BASES["cosine"].rows(size, indices, torch.float64)
    error = (BASES["cosine"].rows(size, indices).double() - exact).abs().max()
    # Of the largest entry, sqrt(2 / n); without taking off whole turns it is 2e-4 at 768.
    assert error / (2 / size) ** 0.5 < 5e-7


def test_rows_of_the_largest_vocabularies_do_not_overflow():
    size = 2**18 + 1
    row = BASES["cosine"].rows(size, torch.tensor([size - 1]), torch.float64)[0]
    assert row.square().sum().item() == pytest.approx(1, abs=1e-12)


def test_rotation_is_the_same_every_time():
    first = BASES["rotation"].rows(5, torch.arange(5), torch.float64)
    assert torch.equal(first, whole("rotation", 5))
    assert first[0, 0] != 0


def test_hadamard_has_no_other_sizes():
    with pytest.raises(InputError, match=r"q has 11008 features, .* such as 10240 or 12288"):
        BASES["hadamard"].check(11008, "q")
    BASES["hadamard"].check(14336, "q")

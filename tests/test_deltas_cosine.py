"""The cosine delta: values, gradients and locations worked by hand (card loca, checks 2 to 8)."""

from __future__ import annotations

import math

import pytest
import torch

from deltatune.deltas.cosine import CosineDelta, CosineSpectrum
from deltatune.errors import InputError, NotComposable
from deltatune.orthonormal import BASES
from deltatune.part import Entries

WAYS = ("factored", "transform", "sparse", "dense", "fast")


def made(rows, columns, dtype=torch.float64, seed=0, **options):
    """Return a delta of a weight (rows, columns), in double precision."""
    weight = torch.zeros(rows, columns)
    generator = torch.Generator().manual_seed(seed)
    delta = CosineDelta(CosineSpectrum(**options), weight, "q", generator=generator)
    return delta.to(dtype)


def placed(rows, columns, cells, values, **options):
    """Return a delta with given coefficients at given cells."""
    delta = made(rows, columns, coefficients=len(values), **options)
    with torch.no_grad():
        delta.locations.copy_(delta.rule.of_cells(torch.tensor(cells).T))
        delta.coefficients.copy_(torch.tensor(values, dtype=torch.float64))
    return delta


def change_of(delta):
    return delta.delta_weight(torch.zeros(delta.out_features, delta.in_features))


def quadratic(delta, target):
    return 0.5 * (change_of(delta) - target).square().sum()


WORKED = {"rows": 4, "columns": 3, "cells": [(1, 2), (3, 0)], "values": [2.0, -1.0]}
TARGET = torch.arange(12, dtype=torch.float64).view(4, 3) / 10


@pytest.mark.parametrize("way", ["sparse", "dense", "fast"])
def test_a_single_atom_is_that_of_the_card(way):
    delta = placed(4, 3, [(1, 2)], [2.0], way=way)
    first = torch.tensor([0.533402, -1.066804, 0.533402], dtype=torch.float64)
    second = torch.tensor([0.220942, -0.441885, 0.220942], dtype=torch.float64)
    wanted = torch.stack([first, second, -second, -first])
    change = change_of(delta)
    torch.testing.assert_close(change, wanted, rtol=0, atol=1e-6)
    assert change.square().sum().item() == pytest.approx(4)


def test_norm_is_scale_times_the_coefficients_norm():
    delta = made(9, 7, coefficients=5, scale=2.0, values="normal", locations="distinct")
    norm = change_of(delta).norm().item()
    assert norm == pytest.approx(2 * delta.coefficients.norm().item(), rel=1e-6)


def outcome(delta, inputs, way, scale):
    """Return output and all gradients by one way."""
    chosen = CosineSpectrum(**{**vars(delta.options), "way": way, "scale": scale})
    delta.options = chosen
    inputs = inputs.clone().requires_grad_()
    weight = torch.zeros(delta.out_features, delta.in_features)
    output = delta.delta_output(inputs, weight)
    loss = (output.float() * torch.arange(output.numel()).view_as(output).cos()).sum()
    return [output, *torch.autograd.grad(loss, [inputs, delta.coefficients, delta.locations])]


@pytest.mark.parametrize("gradient", ["clean", "authors"])
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("rows", "columns", "number"), [(12, 20, 9), (8, 24, 40)])
def test_all_ways_agree(rows, columns, number, basis, gradient):
    options = {"basis": basis, "location_gradient": gradient, "values": "normal"}
    delta = made(rows, columns, coefficients=number, **options)
    inputs = torch.randn(3, 5, columns, generator=torch.Generator().manual_seed(1)).double()
    first, *others = [outcome(delta, inputs, way, 0.7) for way in WAYS]
    for other in others:
        for one, another in zip(first, other, strict=True):
            torch.testing.assert_close(one, another, rtol=0, atol=1e-12 * rows * columns)


@pytest.mark.parametrize(
    ("rows", "columns", "number"), [(768, 768, 1000), (512, 768, 64), (5, 7, 3)]
)
def test_all_ways_agree_in_float32(rows, columns, number):
    delta = made(rows, columns, torch.float32, coefficients=number, values="normal")
    inputs = torch.randn(20, columns, generator=torch.Generator().manual_seed(1))
    exact = outcome(delta.double(), inputs.double(), "dense", 1.0)
    delta.float()
    for way in WAYS:
        for found, wanted in zip(outcome(delta, inputs, way, 1.0), exact, strict=True):
            largest = wanted.abs().max().item()
            # 1e-6 of the largest entry, and the float32 of a sum of 768 products.
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-6 * largest)


def test_gradients_are_those_that_autograd_finds():
    delta = made(6, 5, coefficients=4, values="normal", scale=1.5)
    inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(2)).double()
    rows = BASES["cosine"].rows(6, delta.cells()[0], torch.float64)
    columns = BASES["cosine"].rows(5, delta.cells()[1], torch.float64)
    given = inputs.clone().requires_grad_()
    coefficients = delta.coefficients.detach().clone().requires_grad_()
    plain = given @ (1.5 * (rows.T * coefficients) @ columns).T
    wanted = torch.autograd.grad(plain.cos().sum(), [given, coefficients])
    for way in WAYS:
        delta.options = CosineSpectrum(**{**vars(delta.options), "way": way})
        output = delta.delta_output(given, torch.zeros(6, 5))
        found = torch.autograd.grad(output.cos().sum(), [given, delta.coefficients])
        for ours, autograd in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, autograd, rtol=0, atol=1e-12)


def test_a_twiddle_factor_cast_to_real_is_wrong():
    """What the authors' fast way does; the agreement above would not let it pass."""
    for size in (4, 8, 16):
        vectors = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).double()
        order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2).flip(0)])
        spectrum = torch.fft.fft(vectors[:, order])
        angles = torch.arange(size).double() * math.pi / (2 * size)
        lengths = torch.full((size,), math.sqrt(2 / size), dtype=torch.float64)
        lengths[0] = math.sqrt(1 / size)
        turns = torch.polar(lengths, -angles)
        right = BASES["cosine"].analysis(vectors)
        torch.testing.assert_close((spectrum * turns).real, right, rtol=0, atol=1e-12)
        assert (spectrum.real * turns.real - right).abs().max().item() > 0.4


def test_start_is_zero_and_moves_coefficients_only():
    delta = made(6, 5, torch.float32, coefficients=4)
    inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    output = delta.delta_output(inputs, torch.zeros(6, 5))
    assert torch.equal(output, torch.zeros(7, 6))
    of_values, of_places = torch.autograd.grad(
        (output - 1).square().sum(), [delta.coefficients, delta.locations]
    )
    assert bool((of_values != 0).all())
    assert torch.equal(of_places, torch.zeros(2, 4))


@pytest.mark.parametrize("way", ["sparse", "dense", "fast"])
def test_worked_gradient_of_the_card(way):
    delta = placed(**WORKED, way=way, location_gradient="authors")
    loss = quadratic(delta, TARGET)
    assert change_of(delta).square().sum().item() == pytest.approx(5)
    assert loss.item() == pytest.approx(4.947634, abs=1e-6)
    of_values, of_places = torch.autograd.grad(loss, [delta.coefficients, delta.locations])
    assert of_values.tolist() == pytest.approx([2.0, -0.917634], abs=1e-6)
    assert of_places[0].tolist() == pytest.approx([0, 0.458817], abs=1e-6)
    assert of_places[1].tolist() == pytest.approx([1, -0.458817], abs=1e-6)  # 2, clamped


def loss_at(cells, values=WORKED["values"], rows=4, columns=3, target=TARGET):
    return quadratic(placed(rows, columns, cells, values), target).item()


def test_border_bias_of_the_card_and_the_clean_estimate_is_nearer():
    def halved(later, earlier):
        return (loss_at(later) - loss_at(earlier)) / 2

    # With the missing neighbour replaced by the cell itself.
    true_column_of_first = halved([(1, 2), (3, 0)], [(1, 1), (3, 0)])
    true_row_of_second = halved([(1, 2), (3, 0)], [(1, 2), (2, 0)])
    true_column_of_second = halved([(1, 2), (3, 1)], [(1, 2), (3, 0)])
    assert true_column_of_first == pytest.approx(0, abs=1e-6)  # 2 - 4/2
    assert true_row_of_second == pytest.approx(-0.041183, abs=1e-6)  # 0.458817 - 1/2
    assert true_column_of_second == pytest.approx(0.041183, abs=1e-6)  # -0.458817 + 1/2
    delta = placed(**WORKED)
    (clean,) = torch.autograd.grad(quadratic(delta, TARGET), [delta.locations])
    assert clean[1].tolist() == [0, 0]  # both at a border of the columns
    assert clean[0, 1].item() == 0
    assert clean[0, 0].item() == pytest.approx(0, abs=1e-6)


INTERIOR = {(3, 2): 1.5, (1, 2): -0.5, (2, 3): 0.8, (2, 1): 0.2, (2, 2): 0.1}


def interior_target():
    cells, values = list(INTERIOR), list(INTERIOR.values())
    return change_of(placed(6, 5, cells, values)).detach()


@pytest.mark.parametrize("unit", ["cell", "share"])
@pytest.mark.parametrize("others", [{}, {(3, 2): 0.7, (2, 1): -0.3}])
def test_interior_derivative_is_the_difference_of_losses(unit, others):
    target = interior_target()
    values = [0.4, *others.values()]

    def loss(cell):
        return loss_at([cell, *others], values, 6, 5, target)

    delta = placed(6, 5, [(2, 2), *others], values, location_unit=unit)
    of_values, of_places = torch.autograd.grad(
        quadratic(delta, target), [delta.coefficients, delta.locations]
    )
    along = (loss((3, 2)) - loss((1, 2))) / 2
    across = (loss((2, 3)) - loss((2, 1))) / 2
    spans = (5, 4) if unit == "share" else (1, 1)
    assert of_places[0, 0].item() == pytest.approx(along * spans[0], abs=1e-6)
    assert of_places[1, 0].item() == pytest.approx(across * spans[1], abs=1e-6)
    if not others:
        assert loss((2, 2)) == pytest.approx(1.635, abs=1e-6)
        assert of_values.item() == pytest.approx(0.3, abs=1e-6)
        assert (along, across) == (pytest.approx(-0.4, abs=1e-6), pytest.approx(-0.12, abs=1e-6))


def test_interior_locations_walk_towards_the_peak():
    delta, target = placed(6, 5, [(2, 2)], [0.4]), interior_target()
    optimizer = torch.optim.SGD([delta.locations], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        quadratic(delta, target).backward()
        optimizer.step()
    assert delta.cells().tolist() == [[3], [2]]
    assert delta.locations[1].item() > 2


def test_index_map_of_the_card():
    shares = torch.tensor([[0, 0.25, 0.5, 0.75, 0.9994, 1.2, -0.1]]).repeat(2, 1)
    wanted = {"clean": 767, "authors": 766}
    for gradient, last in wanted.items():
        delta = made(768, 768, location_unit="share", location_gradient=gradient)
        assert delta.rule.cells(shares)[0].tolist() == [0, 192, 384, 575, last, last, 0]
        slope = torch.ones(2, 7)
        found = delta.rule.gradient(slope, torch.ones(7), shares)
        assert found[:, 5:].tolist() == [[0, 0], [0, 0]]
        assert bool((found[:, 1:4] > 0).all())


def test_authors_last_index_is_out_of_reach_from_502_on():
    limits = {501: 500, 502: 500, 768: 766, 1024: 1022, 4096: 4091, 14336: 14321}
    for size, last in limits.items():
        delta = made(size, 2, coefficients=1, location_unit="share", location_gradient="authors")
        assert int(delta.rule.cells(torch.tensor([[2.0], [0.0]]))[0]) == last
        clean = made(size, 2, coefficients=1, location_unit="share")
        assert int(clean.rule.cells(torch.tensor([[1.0], [0.0]]))[0]) == size - 1


def test_locations_stay_float32_in_a_model_of_half_precision():
    delta = made(768, 768, torch.float32)
    before = delta.locations.detach().clone()
    delta.to(torch.bfloat16)
    assert delta.coefficients.dtype == torch.bfloat16
    assert torch.equal(delta.locations, before)
    delta.locations.data = delta.locations.data.to(torch.bfloat16)
    with pytest.raises(NotComposable, match=r"came as torch\.bfloat16"):
        delta.delta_output(torch.zeros(1, 768, dtype=torch.bfloat16), torch.zeros(768, 768))


def test_half_precision_activations_keep_their_dtype_and_autocast_changes_nothing():
    delta = made(12, 20, torch.float32, coefficients=30, values="normal", way="transform")
    inputs = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    exact = delta.delta_output(inputs, torch.zeros(12, 20))
    half = delta.delta_output(inputs.bfloat16(), torch.zeros(12, 20))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(delta.delta_output(inputs, torch.zeros(12, 20)), exact)


def test_counts_of_the_card():
    options = CosineSpectrum(coefficients=1000)
    assert 24 * CosineDelta.number_of_parameters(options, 768, 768) == 72_000
    frozen = CosineSpectrum(coefficients=1000, learns_locations=False)
    assert 24 * CosineDelta.number_of_parameters(frozen, 768, 768) == 24_000


def test_all_cells_are_the_whole_weight_and_scale_and_values_trade():
    delta = made(4, 3, coefficients=12, locations="low_frequency", values="normal")
    target = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    basis = BASES["cosine"]
    spectrum = basis.spectrum(target)
    with torch.no_grad():
        delta.coefficients.copy_(spectrum[delta.cells()[0], delta.cells()[1]])
    torch.testing.assert_close(change_of(delta), target, rtol=0, atol=1e-12)
    whole = change_of(delta)
    delta.options = CosineSpectrum(coefficients=12, scale=2.0, locations="low_frequency")
    with torch.no_grad():
        delta.coefficients.mul_(0.5)
    torch.testing.assert_close(change_of(delta), whole, rtol=0, atol=1e-12)


def test_coefficients_in_one_cell_add_and_share_their_gradient():
    delta = placed(6, 5, [(2, 2), (2, 2), (4, 1)], [0.4, 0.8, 0.3])
    alone = placed(6, 5, [(2, 2), (4, 1)], [1.2, 0.3])
    torch.testing.assert_close(change_of(delta), change_of(alone), rtol=0, atol=1e-12)
    of_values, of_places = torch.autograd.grad(
        quadratic(delta, interior_target()), [delta.coefficients, delta.locations]
    )
    assert of_values[0].item() == pytest.approx(of_values[1].item(), abs=1e-12)
    assert (of_places[:, 1] / of_places[:, 0]).tolist() == pytest.approx([2, 2])


def test_no_tensor_of_a_weight_s_size_is_saved_or_kept():
    delta = made(300, 200, torch.float32, coefficients=50, values="normal")
    inputs = torch.randn(2, 7, 200, requires_grad=True)
    for way in ("factored", "transform"):
        delta.options = CosineSpectrum(**{**vars(delta.options), "way": way})
        saved, seen = [], []
        with torch.autograd.graph.saved_tensors_hooks(_noting(saved), lambda t: t), _Sizes(seen):
            output = delta.delta_output(inputs, torch.zeros(()))
        with _Sizes(seen):
            output.sum().backward()
        assert max(saved) == inputs.numel()
        assert max(seen) < 300 * 200


def _noting(sizes):
    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    return note


class _Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes how large the results of all operations are."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made_now = func(*args, **(kwargs or {}))
        self.seen += [t.numel() for t in [made_now] if isinstance(t, torch.Tensor)]
        return made_now


def test_dropout_drops_the_same_inputs_forward_and_backward():
    delta = made(6, 200, coefficients=40, values="normal", dropout=0.5, way="transform")
    inputs = torch.ones(1, 200, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    output = delta.delta_output(inputs, torch.zeros(6, 200))
    (of_inputs,) = torch.autograd.grad(output.sum(), [inputs])
    # The change is linear in its inputs, whichever were dropped.
    assert (of_inputs * inputs).sum().item() == pytest.approx(output.sum().item())
    dropped = int((of_inputs == 0).sum())
    assert 60 < dropped < 140  # 5 standard deviations of 200 fair draws are 35
    delta.eval()
    assert not torch.equal(delta.delta_output(inputs, torch.zeros(6, 200)), output)


def test_locations_start_where_the_options_say():
    low = made(6, 8, coefficients=4, locations="low_frequency").cells()
    assert set(map(tuple, low.T.tolist())) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    distinct = made(6, 8, coefficients=40, locations="distinct").cells()
    assert len(set(map(tuple, distinct.T.tolist()))) == 40
    few = made(600, 800, coefficients=40, locations="distinct").cells()
    assert len(set(map(tuple, few.T.tolist()))) == 40
    first, again, other = (made(6, 8, coefficients=9, seed=seed).cells() for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_locations_go_where_the_gradient_is_largest():
    delta = made(6, 8, coefficients=3, locations="gradient")
    peaks = [(5, 1), (0, 7), (2, 2)]
    gradient = change_of(placed(6, 8, [*peaks, (1, 1)], [2.0, -3.0, 1.0, 0.5])).detach()
    delta.start(torch.zeros(6, 8), {"weight_gradient": gradient.float()})
    assert set(map(tuple, delta.cells().T.tolist())) == set(peaks)
    with pytest.raises(InputError, match="locations=gradient needs weight_gradient of q"):
        delta.start(torch.zeros(6, 8))


def test_fourier_is_the_real_part_of_the_inverse_transform():
    delta = made(6, 5, coefficients=7, basis="fourier", values="normal", locations="distinct")
    spectrum = torch.zeros(6, 5, dtype=torch.float64)
    spectrum[delta.cells()[0], delta.cells()[1]] = delta.coefficients.detach()
    wanted = torch.fft.ifft2(spectrum, norm="ortho").real
    torch.testing.assert_close(change_of(delta), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficients": 0}, "coefficients=0 is not allowed"),
        ({"coefficients": 1.5}, r"coefficients=1.5 is not allowed: give a whole number"),
        ({"coefficients": math.nan}, "coefficients=nan is not allowed"),
        ({"coefficients": 41}, r"q has 8 x 5 = 40 entries"),
        ({"scale": -1.0}, "scale=-1.0 is not allowed"),
        ({"scale": 0.0}, "scale=0.0 is not allowed"),
        ({"dropout": 1.0}, "dropout=1.0 is not allowed"),
        ({"batches": 0}, "batches=0 is not allowed"),
        ({"basis": "hadamard", "coefficients": 4}, "q has 5 features, and a Hadamard basis"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        made(8, 5, **options)


def test_single_entries_are_refused():
    part = Entries(torch.tensor([1, 2]))
    with pytest.raises(NotComposable, match="changes whole weights"):
        CosineDelta(CosineSpectrum(coefficients=2), torch.zeros(3, 3), "q", part=part)


@pytest.mark.parametrize(
    ("bad", "learns"),
    [(math.nan, True), (16.0, True), (-9.0, True), (8.0, False), (-1.0, False), (math.nan, False)],
)
@pytest.mark.parametrize("unit", ["cell", "share"])
def test_locations_outside_the_spectrum_are_refused_when_loaded(bad, learns, unit):
    options = {"coefficients": 2, "learns_locations": learns, "location_unit": unit}
    delta = made(8, 5, torch.float32, **options)
    state = delta.state_dict()
    state["locations"][0, 0] = bad / (7 if unit == "share" else 1)
    with pytest.raises(InputError, match="locations of q lie outside its spectrum of 8 x 5"):
        made(8, 5, torch.float32, **options).load_state_dict(state)


def test_locations_that_momentum_carried_a_little_beyond_are_loaded():
    delta = made(8, 5, torch.float32, coefficients=2)
    state = delta.state_dict()
    state["locations"][0, 0] = 9.0
    delta.load_state_dict(state)
    assert delta.cells()[0, 0] == 7


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("tokens", [16, 256])
def test_auto_takes_no_way_that_has_much_more_work(basis, tokens):
    """Of a wide weight with few coefficients rows win, unless a transform is fast."""
    delta = CosineDelta(
        CosineSpectrum(coefficients=200, basis=basis), torch.zeros(1, 1).expand(2048, 2048), "q"
    )
    allowed = {"factored"} if basis == "rotation" else {"factored", "transform"}
    assert delta.way_for(tokens) in allowed


def test_a_rotation_of_a_vocabulary_is_refused():
    options = CosineSpectrum(coefficients=3, basis="rotation")
    with pytest.raises(InputError, match=r"head has 262,144 features, .* choose basis cosine"):
        CosineDelta(options, torch.zeros(1, 1).expand(2**18, 2**14), "head")


def test_imaginary_coefficients_are_what_fourierft_leaves_out():
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.randn(6, 10, generator=generator).double()
    whole = BASES["fourier"].matrix(1j * spectrum)
    torch.testing.assert_close(BASES["fourier_imaginary"].matrix(spectrum + 0j).real, whole.real)


def test_ways_of_training_are_recorded_by_the_number_of_tokens():
    delta = made(8, 5, coefficients=2, way="factored")
    weight = torch.zeros(8, 5)
    delta.eval().delta_output(torch.ones(7, 5).double(), weight)
    assert delta.figures()["way_by_tokens"] == {}
    delta.train().delta_output(torch.ones(2, 3, 5).double(), weight)
    assert delta.figures()["way_by_tokens"] == {"6": "factored"}


def test_a_weight_of_a_vocabulary_has_room_for_its_locations():
    """2^18 x 2^14 cells are more than 32 bits count."""
    options = CosineSpectrum(coefficients=3, locations="distinct", values="normal")
    delta = CosineDelta(
        options, torch.zeros(1, 1).expand(2**18, 2**14), "head", generator=torch.Generator()
    )
    assert bool((delta.cells() >= 0).all())
    output = delta.delta_output(torch.ones(1, 2**14), torch.zeros(()))
    assert output.shape == (1, 2**18)
    assert output.isfinite().all()

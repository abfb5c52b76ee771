"""What the sum of deltas itself promises."""

from __future__ import annotations

import pytest
import torch

from deltatune import parts
from deltatune.deltas.entries import EntryValues
from deltatune.deltas.low_rank import LowRank
from deltatune.deltas.sum import Sum, SumDelta
from deltatune.errors import InputError, NotComposable
from deltatune.part import Entries
from deltatune.seeds import generator_for
from tests.adapters import shaken

LOW_RANK_AND_SPARSE = Sum(terms=(LowRank(rank=1, alpha=1.0), EntryValues()))


def made(options: Sum, part: Entries | None = None) -> SumDelta:
    weight = torch.zeros(2, 3)
    return SumDelta(options, weight, "here", part=part, generator=generator_for(0, "here"))


def test_sum_of_low_rank_and_entries_worked_by_hand():
    delta = made(LOW_RANK_AND_SPARSE, Entries(torch.tensor([4])))
    low_rank, sparse = delta.terms
    low_rank.up.data = torch.tensor([[1.0], [2.0]])
    low_rank.down.data = torch.tensor([[1.0, 1.0, 0.0]])
    sparse.values.data = torch.tensor([-2.0])
    weight = torch.zeros(2, 3)
    # The low-rank term changes the whole place, the entries term its one entry.
    assert delta.delta_weight(weight).tolist() == [[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]]
    assert delta.delta_output(torch.tensor([1.0, 2.0, 3.0]), weight).tolist() == [3.0, 2.0]


def test_sum_counts_every_term_with_its_own_part():
    part = Entries(torch.tensor([4, 5]))
    assert SumDelta.number_of_parameters(LOW_RANK_AND_SPARSE, 2, 3, part) == 1 * (2 + 3) + 2
    assert sum(p.numel() for p in made(LOW_RANK_AND_SPARSE, part).parameters()) == 7


def test_sum_of_a_sum_keeps_names_apart_and_adds_everything():
    inner = Sum(terms=(LowRank(rank=1), LowRank(rank=2)))
    delta = shaken(made(Sum(terms=(inner, LowRank(rank=1, alpha=3.0)))))
    assert [name for name, _ in delta.named_parameters()] == [
        f"terms.{path}.{factor}"
        for path in ("0.terms.0", "0.terms.1", "1")
        for factor in ("down", "up")
    ]
    weight = torch.zeros(2, 3)
    first, second = delta.terms
    pieces = [term.delta_weight(weight) for term in (*first.terms, second)]
    torch.testing.assert_close(delta.delta_weight(weight), sum(pieces))
    up, down = delta.low_rank_factors()
    assert up.shape == (2, 4)
    assert down.shape == (4, 3)


def test_sum_terms_that_are_alike_start_apart():
    delta = made(Sum(terms=(LowRank(rank=2), LowRank(rank=2))))
    assert not torch.equal(delta.terms[0].down, delta.terms[1].down)


def test_sum_has_factors_only_if_every_term_has():
    assert made(LOW_RANK_AND_SPARSE, Entries(torch.tensor([4]))).low_rank_factors() is None


def test_sum_changes_the_bias_if_one_term_does(monkeypatch):
    delta = made(Sum(terms=(LowRank(rank=1), LowRank(rank=2))))
    assert delta.delta_bias(torch.zeros(2)) is None
    monkeypatch.setattr(delta.terms[1], "delta_bias", lambda bias: bias + 1)
    assert delta.delta_bias(torch.zeros(2)).tolist() == [1.0, 1.0]


def test_sum_is_mergeable_only_if_every_term_is(monkeypatch):
    assert made(Sum.example()).is_mergeable
    implementation = parts.known("deltas")["low_rank"].implementation
    monkeypatch.setattr(implementation, "is_mergeable", False)
    monkeypatch.setattr(implementation, "reads_weight", True)
    delta = made(Sum.example())
    assert not delta.is_mergeable
    assert delta.reads_weight


@pytest.mark.parametrize("terms", [(), (LowRank(),)])
def test_sum_refuses_fewer_than_two_terms(terms):
    with pytest.raises(InputError, match=f"terms has {len(terms)} delta: give at least two"):
        Sum(terms=terms)


def test_sum_refuses_terms_that_are_no_deltas():
    with pytest.raises(InputError, match="int is not a part of deltas: give the options of one of"):
        Sum(terms=(LowRank(), 3))


def test_sum_reads_and_refuses_plain_terms_with_their_path():
    plain = {"kind": "sum", "terms": [{"kind": "low_rank", "rank": 2}, {"kind": "entries"}]}
    assert parts.from_plain(plain, "deltas") == Sum(terms=(LowRank(rank=2), EntryValues()))
    plain["terms"][0] = {"kind": "low_rank", "rnak": 2}
    with pytest.raises(InputError, match=r"deltas.terms\[0\]: key 'rnak' is not known.*'rank'"):
        parts.from_plain(plain, "deltas")


def test_sum_passes_on_what_a_term_refuses():
    with pytest.raises(InputError, match="rank=3 is not allowed: give an integer from 1 to 2"):
        made(Sum(terms=(LowRank(rank=1), LowRank(rank=3))))
    with pytest.raises(NotComposable, match="EntryValues changes single entries"):
        made(LOW_RANK_AND_SPARSE)


def test_sum_refuses_entries_that_no_term_changes():
    with pytest.raises(
        NotComposable, match=r"no term of the sum \(LowRank, LowRank\) changes entries"
    ):
        made(Sum.example(), Entries(torch.tensor([4])))

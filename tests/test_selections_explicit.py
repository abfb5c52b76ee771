"""Parts written out by hand, and the way between places and weights."""

from __future__ import annotations

import pytest
import torch

from deltatune import sites
from deltatune.errors import InputError
from deltatune.part import Columns, Entries, Rows, Whole
from deltatune.selections.explicit import Explicit
from deltatune.sites import split
from tests.test_selections import choose


def test_explicit_gives_the_parts_as_written(tiny) -> None:
    model = tiny("bert")
    layer = "encoder.layer.0.attention.self"
    selector = Explicit(
        weights={
            f"{layer}.query.weight": "whole",
            f"{layer}.value.weight": {"rows": (3, 1)},
            f"{layer}.key.weight": {"columns": (31,)},
            "encoder.layer.1.attention.self.query.weight": {"entries": (1023, 0)},
        }
    )
    assert choose(selector, model, sites.of(model)) == {
        f"{layer}.query.weight": Whole(),
        f"{layer}.value.weight": Rows(torch.tensor([3, 1])),
        f"{layer}.key.weight": Columns(torch.tensor([31])),
        "encoder.layer.1.attention.self.query.weight": Entries(torch.tensor([1023, 0])),
    }


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"rows": (32,)}, r"Rows index 32 is outside of .* \(32, 32\): give indices from 0 to 31"),
        ({"columns": (40,)}, "Columns index 40"),
        ({"entries": (1024,)}, "from 0 to 1023"),
    ],
)
def test_explicit_refuses_an_index_outside_the_weight(tiny, part, message) -> None:
    model = tiny("bert")
    selector = Explicit(weights={"encoder.layer.0.attention.self.query.weight": part})
    with pytest.raises(InputError, match=message):
        choose(selector, model, sites.of(model))


def test_explicit_names_the_nearest_weight_when_one_does_not_exist(tiny) -> None:
    model = tiny("bert")
    selector = Explicit(weights={"encoder.layer.0.attention.self.quer.weight": "whole"})
    nearest = r"choose one of 'encoder\.layer\.0\.attention\.self\.query\.weight'"
    with pytest.raises(InputError, match=nearest):
        choose(selector, model, sites.of(model))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "name at least one weight"),
        ({"w": "all"}, "give 'whole', or one of"),
        ({"w": {"row": (1,)}}, "key 'row' is not known: choose one of 'rows'"),
        ({"w": {"rows": ()}}, "a list of at least one whole number"),
        ({"w": {"rows": (1.5,)}}, "a list of at least one whole number"),
        ({"w": {"rows": 3}}, "a list of at least one whole number"),
        ({"w": {"rows": (1,), "columns": (1,)}}, "give 'whole', or one of"),
        ({"w": {"rows": (1, 1)}}, "repeated index"),
        ({"w": {"entries": (-1,)}}, "negative"),
    ],
)
def test_explicit_refuses_parts_that_cannot_be(weights, message) -> None:
    with pytest.raises(InputError, match=message):
        Explicit(weights=weights)


def test_explicit_reads_entries_beyond_the_range_of_int32() -> None:
    # A (65536, 65536) weight has 2^32 entries; on the meta device it costs nothing.
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(65536, 65536, bias=False))
    selector = Explicit(weights={"0.weight": {"entries": (2**32 - 1,)}})
    found = sites.of(model)
    ((_, part),) = split(found, "0.weight", choose(selector, model, found)["0.weight"])
    assert part == Entries(torch.tensor([2**32 - 1]))


def test_split_counts_rows_within_each_site(tiny) -> None:
    found = sites.of(tiny("gpt2"))  # rows 0-31 query, 32-63 key, 64-95 value
    part = Rows(torch.tensor([2, 70, 64, *range(32, 64)]))
    pairs = {site.role: cut for site, cut in split(found, "h.0.attn.c_attn.weight", part)}
    assert pairs == {
        "query": Rows(torch.tensor([2])),
        "key": Whole(),
        "value": Rows(torch.tensor([6, 0])),
    }


def test_split_counts_entries_within_each_site(tiny) -> None:
    found = sites.of(tiny("gpt2"))  # 32 inputs: entry (row 65, column 7) is 65 * 32 + 7
    part = Entries(torch.tensor([65 * 32 + 7, 5, 31 * 32]))
    pairs = {site.role: cut for site, cut in split(found, "h.0.attn.c_attn.weight", part)}
    assert pairs == {
        "query": Entries(torch.tensor([5, 31 * 32])),
        "value": Entries(torch.tensor([1 * 32 + 7])),
    }


def test_split_repeats_columns_and_whole_for_every_site(tiny) -> None:
    found = sites.of(tiny("gpt2"))
    columns = Columns(torch.tensor([4]))
    cut = split(found, "h.0.attn.c_attn.weight", columns)
    assert [(site.role, part) for site, part in cut] == [
        (role, columns) for role in ("query", "key", "value")
    ]
    assert all(part == Whole() for _, part in split(found, "h.0.attn.c_attn.weight", Whole()))


def test_join_puts_the_rows_of_a_fused_weight_in_rising_order(tiny) -> None:
    found = sites.of(tiny("gpt2"))
    query, _, value = found.at_weight("h.0.attn.c_attn.weight")
    (part,) = sites.join(found, (value, query)).values()
    assert part == Rows(torch.tensor([*range(32), *range(64, 96)]))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_split_undoes_join(tiny, name) -> None:
    found = sites.of(tiny("phi3"))
    chosen = found.with_roles(name)
    for weight, part in sites.join(found, chosen).items():
        ((site, cut),) = split(found, weight, part)
        assert site in chosen
        assert cut == Whole()

"""The registry of parts: names, plain values, errors that name the fix."""

from dataclasses import dataclass

import pytest

from deltatune import parts
from deltatune.errors import InputError
from deltatune.part import Columns, Entries, Rows, Whole
from deltatune.seeds import generator_for, seed_for


@dataclass(frozen=True, kw_only=True)
class _Options:
    rank: int = 8
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank={self.rank} is not allowed: give an integer from 1 on")


@pytest.mark.parametrize("room", parts.ROOMS)
def test_every_declared_part_says_what_it_is(room):
    assert parts.known(room), f"{room} declares nothing"
    for declaration in parts.known(room).values():
        assert declaration.summary.endswith("."), declaration.name
        assert declaration.room == room


@pytest.mark.parametrize("room", ["deltas", "updates", "objectives"])
def test_every_part_with_defaults_survives_the_way_through_plain_values(room):
    for name, declaration in parts.known(room).items():
        options = getattr(declaration.options, "example", declaration.options)()
        plain = parts.to_plain(options, room)
        assert plain["kind"] == name
        assert parts.from_plain(plain, room) == options


def test_from_plain_names_the_nearest_part_when_the_kind_is_misspelt():
    with pytest.raises(
        InputError, match=r"deltas\.kind 'low_rnk' is not known: choose one of 'low_rank'"
    ):
        parts.from_plain({"kind": "low_rnk"}, "deltas")


def test_from_plain_names_the_nearest_key_when_a_key_is_misspelt():
    with pytest.raises(InputError, match="key 'rnak' is not known: choose one of 'rank'"):
        parts.from_plain({"kind": "low_rank", "rnak": 4}, "deltas")


def test_from_plain_asks_for_the_kind_when_there_is_none():
    with pytest.raises(InputError, match="has no key 'kind'"):
        parts.from_plain({"rank": 4}, "deltas")


def test_validated_reads_numbers_that_yaml_leaves_as_text():
    assert parts.validated(_Options, {"rank": "4", "betas": ["9e-1", 0.95]}, "delta") == _Options(
        rank=4, betas=(0.9, 0.95)
    )


def test_validated_keeps_the_part_s_own_message():
    with pytest.raises(InputError, match="delta: rank=0 is not allowed: give an integer from 1 on"):
        parts.validated(_Options, {"rank": 0}, "delta")


def test_validated_names_path_and_value_when_the_type_is_wrong():
    with pytest.raises(InputError, match=r"delta\.rank='many' is not allowed"):
        parts.validated(_Options, {"rank": "many"}, "delta")


def test_declaration_of_names_the_room_s_parts_for_a_stranger():
    with pytest.raises(
        InputError, match="_Options is not a part of updates: give the options of one of"
    ):
        parts.declaration_of(_Options(), "updates")


@pytest.mark.parametrize("room", ["deltas", "selections", "updates", "objectives"])
def test_json_schema_lists_each_part_and_forbids_other_keys(room):
    schemas = parts.json_schema(room)["oneOf"]
    assert [schema["properties"]["kind"]["const"] for schema in schemas] == list(parts.known(room))
    assert all(schema["additionalProperties"] is False for schema in schemas)


def test_rows_columns_entries_refuse_narrow_or_repeated_indices():
    import torch

    for kind in (Rows, Columns, Entries):
        with pytest.raises(InputError, match=r"torch\.int64"):
            kind(torch.tensor([1, 2], dtype=torch.int32))
        with pytest.raises(InputError, match="repeated"):
            kind(torch.tensor([1, 1]))
        assert (
            kind(torch.tensor([1, 2])) == kind(torch.tensor([1, 2])) != kind(torch.tensor([2, 1]))
        )


def test_part_shapes_are_those_of_what_may_change():
    import torch

    two = torch.tensor([0, 3])
    assert [part.shape(4, 5) for part in (Whole(), Rows(two), Columns(two), Entries(two))] == [
        (4, 5),
        (2, 5),
        (4, 2),
        (2,),
    ]


def test_seeds_differ_by_run_name_and_step_and_repeat():
    seeds = {
        seed_for(seed, name, step) for seed in (0, 1) for name in ("a", "b") for step in (0, 1)
    }
    assert len(seeds) == 8
    assert generator_for(3, "x").initial_seed() == generator_for(3, "x").initial_seed()

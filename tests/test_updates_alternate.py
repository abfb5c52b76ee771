"""The schedule of parts that take turns, by the numbers of LoCA's card, and its refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import yaml

from deltatune import parts, recipe
from deltatune import sites as places
from deltatune.deltas.low_rank import LowRank
from deltatune.errors import InputError
from deltatune.sites import Sites
from deltatune.updates.alternate import Alternate, Phase
from deltatune.updates.chain import Chain
from deltatune.updates.groups import plan_groups
from deltatune.updates.ratios import Ratios
from deltatune.updates.update import Factor, TrainedParameter
from tests.models import tiny


def parameter(role: str, part_role: str) -> TrainedParameter:
    return TrainedParameter(
        name=f"{role}.{part_role}",
        canonical=f"layers.0.{role}",
        role=role,
        part_role=part_role,
        layer=0,
        number_of_layers=1,
        shape=(2,),
    )


COEFFICIENTS = parameter("value", "coefficient")
LOCATIONS = parameter("value", "location")
HEAD = parameter("head", "weight")
ALL = (COEFFICIENTS, LOCATIONS, HEAD)
COEFFICIENT_TURN = Phase(parts=("coefficient",), steps=10)
LOCATION_TURN = Phase(parts=("location",), steps=20, learning_rate=15.4, weight_decay=0.0)


def loca(until: float, **changes: Any) -> Alternate:
    options = {"phases": (COEFFICIENT_TURN, LOCATION_TURN), "then": ("coefficient",), **changes}
    return Alternate(until=until, **options)


def turns(update: Alternate, steps: int) -> str:
    """Return one letter for each step: c for the coefficients, l for the locations."""
    letters = []
    for step in range(steps):
        live = update.live(step, ALL, steps=steps)
        assert live is not None
        assert HEAD.name in live
        (name,) = live - {HEAD.name}
        letters.append({COEFFICIENTS.name: "c", LOCATIONS.name: "l"}[name])
    return "".join(letters)


@pytest.fixture(scope="module")
def sites() -> Sites:
    return places.of(tiny("llama"))


def test_schedule_is_that_of_the_card() -> None:
    # B_s = 90: steps 0-9 coefficients, 10-29 locations, 30-39 coefficients, ..., from 90 on both
    # no more than coefficients.
    assert turns(loca(90), 200) == ("c" * 10 + "l" * 20) * 3 + "c" * 110


@pytest.mark.parametrize(
    ("until", "coefficients", "locations"),
    [(30, 10, 20), (90, 30, 60), (100, 40, 60), (234, 80, 154), (1000, 340, 660), (0, 0, 0)],
)
def test_steps_until_the_end_are_split_as_in_the_card(
    until: int, coefficients: int, locations: int
) -> None:
    found = turns(loca(until), 1200)
    assert (found[:until].count("c"), found[:until].count("l")) == (coefficients, locations)
    assert set(found[until:]) == {"c"}


@pytest.mark.parametrize(
    ("until", "steps", "end"),
    [
        (0.1, 900, 90),
        (0.29, 1000, 290),  # the product of doubles is 290 less a rounding error
        (0.5, 41, 20),  # 20.5 is halfway, and goes to the even one
        (1.0, 300, 300),
        (0.0, 300, 0),
    ],
)
def test_end_as_a_fraction_is_of_the_whole_run(until: float, steps: int, end: int) -> None:
    assert turns(loca(until), steps) == turns(loca(end), steps)


def test_whole_number_is_a_number_of_steps_and_a_fraction_is_none() -> None:
    one = loca(1, phases=(LOCATION_TURN, COEFFICIENT_TURN))
    assert turns(one, 30) == "l" + "c" * 29
    assert turns(loca(1.0), 60) == ("c" * 10 + "l" * 20) * 2


def test_phases_may_be_any_number_of_any_parts() -> None:
    update = Alternate(
        phases=(
            Phase(parts=("coefficient", "weight"), steps=1),
            Phase(parts=("location",), steps=2),
            Phase(parts=("magnitude",), steps=1),
        )
    )
    everyone = (*ALL, parameter("value", "magnitude"))
    found = [update.live(step, everyone, steps=100) for step in range(5)]
    first = {COEFFICIENTS.name, HEAD.name}
    assert found == [first, {LOCATIONS.name}, {LOCATIONS.name}, {"value.magnitude"}, first]


def test_factors_belong_to_the_parts_of_a_phase(sites: Sites) -> None:
    apart = Phase(parts=("location",), steps=1, learning_rate=2.0, clipped_apart=True)
    update = loca(0.5, phases=(COEFFICIENT_TURN, apart))
    assert update.factors(ALL, sites) == {
        COEFFICIENTS.name: Factor(label="coefficient"),
        LOCATIONS.name: Factor(learning_rate=2.0, label="location", clipped_with="location"),
    }
    spared = loca(0.5).factors(ALL, sites)[LOCATIONS.name]
    assert spared == Factor(learning_rate=15.4, weight_decay=0.0, label="location")


def test_ratio_of_efficientft_reaches_coefficients_and_not_locations(sites: Sites) -> None:
    update = Chain(updates=(Ratios(roles={"value": 4.0}), loca(0.1)))
    groups = plan_groups(ALL, update, sites, learning_rate=1e-2, weight_decay=0.1)
    # 5e-3 is the rate of coefficients, 1e-4 that of locations: here 1e-2 and 15.4 times as much.
    assert [(g.label, g.learning_rate, g.weight_decay) for g in groups] == [
        ("value coefficient", 4e-2, 0.1),
        ("value location", pytest.approx(0.154), 0.0),
        ("head", 1e-2, 0.1),
    ]
    plain = Ratios(roles={"value": 4.0}, spares=())
    assert plain.factors(ALL, sites)[LOCATIONS.name].learning_rate == 4.0
    with pytest.raises(InputError, match=r"role 'value' reaches no trained parameter"):
        Ratios(roles={"value": 4.0}).factors((LOCATIONS, HEAD), sites)


def test_chain_keeps_sets_of_clipping_and_splits_those_of_two_rules(sites: Sites) -> None:
    apart = Phase(parts=("location",), steps=1, clipped_apart=True)
    one = Alternate(phases=(COEFFICIENT_TURN, apart))
    groups = plan_groups(
        ALL, Chain(updates=(Ratios(), one)), sites, learning_rate=1.0, weight_decay=0.0
    )
    assert [group.clipped_with for group in groups] == ["", "location", ""]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Phase(parts=("up",), steps=0), r"steps=0 .* each turn of up, an integer from 1"),
        (lambda: Phase(parts=(), steps=1), r"a phase has no parts"),
        (lambda: Phase(parts=("up",), steps=1, learning_rate=0.0), r"ratio=0 is not allowed"),
        (lambda: Phase(parts=("up",), steps=1, weight_decay=-1.0), r"weight_decay=-1 is not"),
        (lambda: Phase(parts=("up",), steps=1, weight_decay=math.nan), r"weight_decay=nan"),
        (lambda: Alternate(phases=()), r"phases is empty"),
        (lambda: loca(-0.1), r"until=-0\.1 is not allowed: give a fraction"),
        (lambda: loca(-1), r"until=-1 is not allowed"),
        (lambda: loca(1.5), r"until=1\.5 is not allowed"),
        (lambda: loca(math.nan), r"until=nan is not allowed"),
        (lambda: loca(math.inf), r"until=inf is not allowed"),
        (lambda: loca(0.1, then=("locations",)), r"'locations' .* choose one of 'location'"),
        (
            lambda: loca(0.1, phases=(COEFFICIENT_TURN, Phase(parts=("coefficient",), steps=1))),
            r"part 'coefficient' is given twice in phases",
        ),
        (
            lambda: loca(0.1, phases=(Phase(parts=("coefficient",) * 2, steps=1),)),
            r"part 'coefficient' is given twice in phases",
        ),
    ],
)
def test_rhythm_refuses_what_is_none(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_rhythm_refuses_a_part_that_nothing_has(sites: Sites) -> None:
    with pytest.raises(
        InputError,
        match=r"part 'location' reaches no trained parameter: .* parts coefficient, weight;",
    ):
        loca(0.1).factors((COEFFICIENTS, HEAD), sites)


def test_rhythm_refuses_to_end_with_nothing_that_trains(sites: Sites) -> None:
    with pytest.raises(InputError, match=r"nothing trains after .* as in then=\('coefficient',\)"):
        loca(1, then=()).factors((COEFFICIENTS, LOCATIONS), sites)
    assert loca(1, then=()).factors(ALL, sites)  # the head goes on
    assert loca(1.0, then=()).factors((COEFFICIENTS, LOCATIONS), sites)  # it never ends


def test_recipe_with_turns_goes_through_yaml_and_back() -> None:
    made = recipe.Recipe(delta=LowRank(), update=Chain(updates=(Ratios(), loca(0.1))))
    assert recipe.from_plain(yaml.safe_load(made.to_yaml())) == made
    phase = parts.to_plain(loca(0.1), "updates")["phases"][0]
    assert phase == {
        "parts": ["coefficient"],
        "steps": 10,
        "learning_rate": 1.0,
        "weight_decay": 1.0,
        "clipped_apart": False,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phases": [{"parts": ["up"], "steps": 1, "step": 2}]}, r"phases\[0\]\.step=2 .*leave it"),
        ({"phases": [{"parts": ["up"], "steps": 1.5}]}, r"phases\[0\]\.steps=1\.5 is not allowed"),
        ({"phases": [{"parts": ["up"]}]}, r"phases\[0\].*give a mapping with 'steps'"),
        ({"phases": [{"parts": "up", "steps": 1}]}, r"phases\[0\]\.parts='up' is not allowed"),
        ({}, r"phases is missing"),
    ],
)
def test_file_with_a_wrong_phase_is_refused_by_its_path(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"update\.{message}|{message}"):
        parts.from_plain({"kind": "alternate", **fields}, "updates", where="update")


def test_schema_tells_the_fields_of_a_phase() -> None:
    (schema,) = (
        one
        for one in parts.json_schema("updates")["oneOf"]
        if one["properties"]["kind"] == {"const": "alternate"}
    )
    phase = schema["$defs"]["Phase"]
    assert set(phase["properties"]) == {field.name for field in dataclasses.fields(Phase)}
    assert phase["additionalProperties"] is False

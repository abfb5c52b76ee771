"""Each rule for rates by itself: hand-worked numbers and refusals."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest

from deltatune import parts
from deltatune import sites as places
from deltatune.errors import InputError, NotComposable
from deltatune.sites import Sites
from deltatune.updates import chain as chains
from deltatune.updates.chain import Chain
from deltatune.updates.layerwise_decay import LayerwiseDecay
from deltatune.updates.lora_plus import LoraPlus
from deltatune.updates.ratios import Ratios
from deltatune.updates.update import Factor, TrainedParameter
from deltatune.updates.weight_decay import WeightDecay
from tests.models import tiny


def parameter(
    canonical: str, role: str, part_role: str = "weight", layer: int | None = 0, axes: int = 2
) -> TrainedParameter:
    return TrainedParameter(
        name=f"{canonical}:{part_role}",
        canonical=canonical,
        role=role,
        part_role=part_role,
        layer=layer,
        number_of_layers=3,
        shape=(2,) * axes,
    )


QUERY = parameter("layers.0.attn.q_proj", "query", "down")
QUERY_UP = parameter("layers.0.attn.q_proj", "query", "up")
VALUE = parameter("layers.2.attn.v_proj", "value", "down", 2)
VALUE_UP = parameter("layers.2.attn.v_proj", "value", "up", 2)
VALUE_WEIGHT = parameter("layers.1.attn.v_proj.weight", "value", "weight", 1)
VALUE_BIAS = parameter("layers.1.attn.v_proj.bias", "value", "bias", 1, axes=1)
HEAD = parameter("score.weight", "head", layer=None)
NORM = parameter("layers.0.norm.weight", "norm", axes=1)
EMBEDDING = parameter("embed.weight", "embedding", layer=None)
ALL = (QUERY, QUERY_UP, VALUE, VALUE_UP, VALUE_WEIGHT, VALUE_BIAS, HEAD, NORM, EMBEDDING)


@pytest.fixture(scope="module")
def sites() -> Sites:
    return places.of(tiny("llama"))


def rates(update: Any, sites: Sites) -> dict[TrainedParameter, float]:
    factors = update.factors(ALL, sites)
    return {p: factors.get(p.name, Factor()).learning_rate for p in ALL}


def test_ratios_multiply_role_pattern_and_layer(sites: Sites) -> None:
    update = Ratios(roles={"value": 4.0}, patterns={"*.v_proj": 0.5}, layers={2: 3.0}, default=0.1)
    found = rates(update, sites)
    assert found[VALUE] == pytest.approx(4 * 0.5 * 3)
    assert found[VALUE_BIAS] == pytest.approx(4 * 0.5)
    assert found[QUERY] == found[HEAD] == pytest.approx(0.1)


def test_ratios_compare_patterns_by_whole_components(sites: Sites) -> None:
    found = rates(Ratios(patterns={"attn.v_proj.bias": 2.0, "0.*.q_proj": 3.0}), sites)
    assert found[VALUE_BIAS] == 2.0
    assert found[VALUE_WEIGHT] == found[VALUE] == 1.0
    assert found[QUERY] == 3.0
    with pytest.raises(InputError, match=r"pattern 'proj' reaches no trained parameter"):
        Ratios(patterns={"proj": 2.0}).factors(ALL, sites)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["roles", "patterns", "layers", "default"])
def test_ratios_refuse_what_is_no_finite_number_above_zero(field: str, ratio: float) -> None:
    given = {
        "roles": {"value": ratio},
        "patterns": {"q": ratio},
        "layers": {0: ratio},
        "default": ratio,
    }[field]
    message = f"ratio={ratio:g} is not allowed: give a finite number above 0"
    with pytest.raises(InputError) as raised:
        Ratios(**{field: given})
    assert str(raised.value) == message


def test_ratios_name_the_nearest_role() -> None:
    with pytest.raises(InputError, match=r"role 'vlaue' is not known: choose one of 'value'"):
        Ratios(roles={"vlaue": 2.0})


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (Ratios(roles={"gate": 2.0}), r"role 'gate' reaches no .*trained roles are embedding"),
        (Ratios(layers={7: 2.0}), r"layer 7 reaches no .*trained layers are 0, 1, 2"),
        (Ratios(patterns={"k_proj": 2.0}), r"pattern 'k_proj' reaches no"),
    ],
)
def test_ratios_refuse_to_do_nothing_silently(update: Ratios, message: str, sites: Sites) -> None:
    with pytest.raises(InputError, match=message):
        update.factors(ALL, sites)


def test_lora_plus_multiplies_up_factors_only(sites: Sites) -> None:
    found = rates(LoraPlus(ratio=16.0), sites)
    assert found[QUERY_UP] == found[VALUE_UP] == 16.0
    assert found[QUERY] == found[HEAD] == 1.0


def test_lora_plus_refuses_a_delta_without_up_factors(sites: Sites) -> None:
    with pytest.raises(
        NotComposable, match=r"lora_plus needs a low-rank delta.*parts bias, weight"
    ):
        LoraPlus().factors((VALUE_WEIGHT, VALUE_BIAS), sites)


def test_layerwise_decay_counts_from_the_top(sites: Sites) -> None:
    found = rates(LayerwiseDecay(decay=0.5), sites)
    assert found[VALUE] == 1.0  # layer 2 of 3
    assert found[VALUE_BIAS] == 0.5
    assert found[QUERY] == 0.25
    assert found[EMBEDDING] == 0.125
    assert found[HEAD] == 1.0


@pytest.mark.parametrize("decay", [0.0, 1.1, math.nan])
def test_layerwise_decay_refuses_what_is_no_decay(decay: float) -> None:
    with pytest.raises(InputError, match=r"give a number above 0, at most 1"):
        LayerwiseDecay(decay=decay)


def test_weight_decay_spares_biases_and_norms_and_keeps_rates(sites: Sites) -> None:
    factors = WeightDecay().factors(ALL, sites)
    assert factors == {
        VALUE_BIAS.name: Factor(weight_decay=0.0),
        NORM.name: Factor(weight_decay=0.0),
    }
    vectors = WeightDecay(exempt=("vector",))
    assert set(vectors.factors(ALL, sites)) == {VALUE_BIAS.name, NORM.name}
    assert set(WeightDecay(exempt=("head",)).factors(ALL, sites)) == {HEAD.name}


def test_weight_decay_names_the_nearest_exemption() -> None:
    with pytest.raises(InputError, match=r"exempt 'biases' is not known: choose one of 'bias'"):
        WeightDecay(exempt=("biases",))


def test_chain_of_ratio_and_lora_plus_gives_the_four_rates_of_the_card(sites: Sites) -> None:
    # eta(A_q) = eta, eta(B_q) = rho eta, eta(A_v) = lambda eta, eta(B_v) = lambda rho eta
    found = rates(Chain(updates=(Ratios(roles={"value": 4.0}), LoraPlus(ratio=16.0))), sites)
    assert [found[p] for p in (QUERY, QUERY_UP, VALUE, VALUE_UP)] == [1.0, 16.0, 4.0, 64.0]


def test_chain_joins_labels_without_repeating_them(sites: Sites) -> None:
    update = Chain(updates=(Ratios(layers={0: 2.0}), LayerwiseDecay(), LoraPlus()))
    assert update.factors(ALL, sites)[QUERY_UP.name].label == "layer 0 up"


def test_chain_of_nothing_is_the_identity(sites: Sites) -> None:
    assert Chain().factors(ALL, sites) == {}
    assert Chain().live(0, ALL, steps=1) is None
    assert not Chain().changes_who_trains


class _Live:
    changes_who_trains: ClassVar[bool] = True

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)

    def factors(self, parameters: Any, sites: Any) -> dict[str, Factor]:
        return {}

    def live(self, step: int, parameters: Any, *, steps: int) -> frozenset[str] | None:
        return self.names


def test_chain_trains_what_is_live_under_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "declaration_of", lambda update, room: None)
    chain = Chain(updates=(_Live("a", "b"), Ratios(), _Live("b", "c")))
    assert chain.changes_who_trains
    assert chain.live(0, ALL, steps=1) == {"b"}


def test_chain_refuses_what_is_no_update() -> None:
    with pytest.raises(InputError, match=r"str is not a part of updates"):
        Chain(updates=("ratios",))


def test_chain_has_a_plain_form_with_its_parts() -> None:
    rules = [{"kind": "lora_plus", "ratio": 8.0}, {"kind": "weight_decay"}]
    plain = {"kind": "chain", "updates": rules}
    built = parts.from_plain(plain, "updates")
    assert built == Chain(updates=(LoraPlus(ratio=8.0), WeightDecay()))

"""What is measured before training: right numbers, and a model that nobody touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltatune import sites
from deltatune.activation_covariance import activation_covariance
from deltatune.calibration import Calibration
from deltatune.errors import InputError, NotComposable
from deltatune.objectives.next_token import NextToken
from deltatune.selections.by_role import ByRole
from deltatune.selections.largest_gradients import LargestGradients
from deltatune.statistics import STATISTICS, Measurements, check_needs
from deltatune.weight_gradient import weight_gradient
from tests.calibrated import calibration_for
from tests.training import collate, token_rows

ROWS = token_rows(6)
BATCHES = [collate(ROWS[i : i + 2]) for i in (0, 2, 4)]
TOKENS = Calibration(batches=BATCHES, objective=NextToken())


def weights_of(model, found) -> list[str]:
    return list(ByRole()(model, found))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weight_gradient_is_that_of_one_large_batch(tiny, name) -> None:
    model = tiny(name, "causal_lm")
    found = sites.of(model)
    names = weights_of(model, found)
    measured = dict(weight_gradient(model, found, names, TOKENS, batches=3))
    whole = collate(ROWS)
    loss = NextToken().total(model(**{k: v for k, v in whole.items() if k != "labels"}), whole)
    (loss / NextToken().count(whole)).backward()
    assert list(measured) == names
    for weight, gradient in measured.items():
        stored = model.get_parameter(weight).grad
        expected = stored.T if found.at_weight(weight)[0].transposed else stored
        # The two sum the same float32 terms in another order.
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_weight_gradient_is_the_same_in_one_pass_and_in_several(tiny) -> None:
    model = tiny("llama", "causal_lm")
    found = sites.of(model)
    names = weights_of(model, found)
    one = dict(weight_gradient(model, found, names, TOKENS, batches=2))
    several = dict(weight_gradient(model, found, names, TOKENS, batches=2, at_once=1))
    assert one.keys() == several.keys()
    assert all(torch.equal(one[weight], several[weight]) for weight in names)


def test_weight_gradient_takes_the_models_own_loss_without_an_objective(tiny) -> None:
    model = tiny("llama", "causal_lm")
    found = sites.of(model)
    (name, *_) = weights_of(model, found)
    own = Calibration(batches=BATCHES[:1])
    ((_, gradient),) = weight_gradient(model, found, [name], own, batches=1)
    model(**BATCHES[0]).loss.backward()
    torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-7)


def test_weight_gradient_of_a_tied_weight_goes_through_both_places(tiny) -> None:
    model = tiny("llama", "causal_lm", tie_word_embeddings=True)
    found = sites.of(model)
    name = "model.embed_tokens.weight"
    ((_, gradient),) = weight_gradient(model, found, [name], TOKENS, batches=1)
    batch = BATCHES[0]
    loss = NextToken().total(model(input_ids=batch["input_ids"]), batch)
    (loss / NextToken().count(batch)).backward()
    torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


def test_weight_gradient_is_float32_when_the_base_is_bfloat16(tiny) -> None:
    model = tiny("llama", "causal_lm").to(torch.bfloat16)
    found = sites.of(model)
    measured = weight_gradient(model, found, weights_of(model, found), TOKENS, batches=1)
    assert {gradient.dtype for _, gradient in measured} == {torch.float32}


@pytest.mark.parametrize("statistic", sorted(STATISTICS))
def test_statistic_leaves_the_model_as_it_was_to_the_last_bit(tiny, statistic) -> None:
    model = tiny("bert", hidden_dropout_prob=0.1)
    model.train()
    model.pooler.eval()
    found = sites.of(model)
    names = weights_of(model, found)
    model.get_parameter(names[1]).requires_grad_(False)
    model.get_parameter(names[0]).grad = torch.ones_like(model.get_parameter(names[0]))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    generator = torch.random.get_rng_state()
    first = dict(
        STATISTICS[statistic].measure(model, found, names, calibration_for(model), batches=2)
    )
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.equal(model.get_parameter(names[0]).grad, torch.ones(32, 32))
    assert model.get_parameter(names[1]).grad is None
    # Dropout was off: measured again, it is the same.
    again = STATISTICS[statistic].measure(model, found, names, calibration_for(model), batches=2)
    assert all(torch.equal(first[name], tensor) for name, tensor in again)


def test_activation_covariance_is_the_mean_over_the_tokens_that_are_no_padding(tiny) -> None:
    model = tiny("llama")
    found = sites.of(model)
    name = "layers.0.self_attn.q_proj.weight"
    batch = BATCHES[0]
    assert not bool(batch["attention_mask"].all())
    given = Calibration(batches=[batch])
    ((_, covariance),) = activation_covariance(model, found, [name], given, batches=1)
    with torch.no_grad():
        inputs = model.layers[0].input_layernorm(model.embed_tokens(batch["input_ids"]))
    tokens = inputs[batch["attention_mask"].bool()]
    torch.testing.assert_close(covariance, tokens.T @ tokens / len(tokens))
    several = activation_covariance(model, found, [name], given, batches=1, at_once=1)
    assert torch.equal(dict(several)[name], covariance)


def test_activation_covariance_refuses_an_encoder_with_a_decoder(tiny) -> None:
    model = tiny("t5")
    with pytest.raises(NotComposable, match="activation_covariance and the encoder-decoder t5"):
        list(
            activation_covariance(
                model, sites.of(model), ["shared.weight"], calibration_for(model), batches=1
            )
        )


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "has no batch"),
        ([[1, 2]], "is a list: give mappings"),
        ([{"input_ids": torch.ones(1, 2).long()}], r"no 'labels' \(it has input_ids\)"),
        (
            [{"input_ids": torch.ones(1, 2).long(), "labels": torch.full((1, 2), -100)}],
            "none of the 1 calibration batches has a supervised token",
        ),
    ],
)
def test_measuring_refuses_batches_that_cannot_be(tiny, batches, message) -> None:
    model = tiny("llama", "causal_lm")
    found = sites.of(model)
    given = Calibration(batches=batches, objective=NextToken())
    with pytest.raises(InputError, match=message):
        list(weight_gradient(model, found, weights_of(model, found), given, batches=2))


def test_calibration_refuses_what_can_be_read_only_once() -> None:
    with pytest.raises(InputError, match=r"are a generator, .*: give a list"):
        Calibration(batches=(batch for batch in BATCHES))


def test_calibration_gives_a_shuffling_loader_the_same_order_every_time() -> None:
    loader = torch.utils.data.DataLoader(range(64), batch_size=4, shuffle=True, collate_fn=_named)
    state = torch.random.get_rng_state()
    first = Calibration(batches=loader, seed=3).take(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == Calibration(batches=loader, seed=3).take(2)
    assert first != Calibration(batches=loader, seed=4).take(2)


@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_calibration_leaves_a_loader_s_own_generator_alone(where):
    generator = torch.Generator().manual_seed(9)
    if where == "loader":
        order = {"shuffle": True, "generator": generator}
    else:
        order = {"sampler": torch.utils.data.RandomSampler(range(64), generator=generator)}
    loader = torch.utils.data.DataLoader(range(64), batch_size=4, collate_fn=_named, **order)
    state = generator.get_state()
    first = Calibration(batches=loader, seed=3).take(2)
    assert torch.equal(generator.get_state(), state)
    assert first == Calibration(batches=loader, seed=3).take(2)
    assert first != Calibration(batches=loader, seed=4).take(2)


def _named(rows):
    return {"rows": rows}


def test_weight_gradient_refuses_a_weight_without_one(tiny) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"0.weight is stored as torch.int8"):
        list(weight_gradient(model, sites.of(model), ["0.weight"], TOKENS, batches=1))


def test_weight_gradient_refuses_a_gradient_that_is_not_finite(tiny) -> None:
    model = tiny("llama", "causal_lm")
    found = sites.of(model)
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"q_proj.weight on the calibration batches is not finite"):
        list(weight_gradient(model, found, weights_of(model, found), TOKENS, batches=1))


def test_activation_covariance_refuses_activations_that_are_not_finite(tiny) -> None:
    # CorDA doubles its damping until its inverse can be trusted, which would never be.
    model = tiny("llama", "causal_lm")
    found = sites.of(model)
    model.get_input_embeddings().weight.data[:, 0] = float("nan")
    names = weights_of(model, found)[:1]
    with pytest.raises(InputError, match=r"enters the layer of .*q_proj.weight.* is not finite"):
        list(activation_covariance(model, found, names, TOKENS, batches=1))


def test_weight_gradient_by_hand() -> None:
    # y = w x, loss y^2 summed over 2 examples, over 2: dw = 2 w x x^T / 2. Conv1D keeps w^T.
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1, bias=False)
            self.layer.weight.data = torch.tensor([[3.0, -1.0]])

        def forward(self, inputs):
            return (self.layer(inputs),)

    from tests.calibrated import SquaredOutput

    model = Model()
    batch = {"inputs": torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "labels": torch.zeros(2)}
    given = Calibration(batches=[batch], objective=SquaredOutput())
    found = sites.of(model)
    ((_, gradient),) = weight_gradient(model, found, ["layer.weight"], given, batches=1)
    # x1: w x = 1, 2 * 1 * (1, 2); x2: w x = -1, 2 * -1 * (0, 1); the sum (2, 2), over 2.
    assert gradient.tolist() == [[1.0, 1.0]]
    ((_, covariance),) = activation_covariance(model, found, ["layer.weight"], given, batches=1)
    assert covariance.tolist() == [[0.5, 1.0], [1.0, 2.5]]


def test_part_that_needs_statistics_says_so_when_there_are_no_examples() -> None:
    assert check_needs(ByRole(), None) == frozenset()
    with pytest.raises(
        InputError, match=r"LargestGradients needs weight_gradient, .*prepare\(base, dataloader\)"
    ):
        check_needs(LargestGradients(), None)


def test_part_that_needs_an_unknown_statistic_is_refused() -> None:
    class Part:
        needs = frozenset({"weight_gradiant"})

    with pytest.raises(InputError, match=r"'weight_gradiant' is not known: .*'weight_gradient'"):
        check_needs(Part(), TOKENS)


def test_measurements_give_only_what_was_declared(tiny) -> None:
    model = tiny("llama")
    given = Measurements(model=model, sites=sites.of(model), calibration=TOKENS, needs=frozenset())
    with pytest.raises(AssertionError, match="not declared"):
        given.measure("weight_gradient", [], batches=1)

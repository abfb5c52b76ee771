import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltatune import sites
from deltatune.errors import InputError, NotMergeable
from deltatune.recipe import named
from deltatune.weight_delta import WeightDelta

Build = Callable[..., PreTrainedModel]

LAYERS = ["q_proj", "down_proj"]
KINDS: dict[str, peft.PeftConfig] = {
    "lora": peft.LoraConfig(target_modules=LAYERS, r=3, lora_alpha=5),
    "rank-stabilised lora": peft.LoraConfig(target_modules=LAYERS, r=3, use_rslora=True),
    "dora": peft.LoraConfig(target_modules=LAYERS, r=3, use_dora=True),
    "lora of raw parameters": peft.LoraConfig(
        target_modules=[], target_parameters=["q_proj.weight"], r=3
    ),
    "lora and tokens": peft.LoraConfig(target_modules=LAYERS, r=3, trainable_token_indices=[1, 5]),
    "adalora": peft.AdaLoraConfig(target_modules=LAYERS, init_r=3, target_r=2, total_step=10),
    "(ia)3": peft.IA3Config(target_modules=LAYERS, feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(target_modules=LAYERS, r=3),
    "lokr": peft.LoKrConfig(target_modules=LAYERS, r=3),
    "oft": peft.OFTConfig(target_modules=LAYERS, oft_block_size=8),
    "boft": peft.BOFTConfig(target_modules=LAYERS, boft_block_size=4),
    "vera": peft.VeraConfig(target_modules=["q_proj"], r=3),
    "fourierft": peft.FourierFTConfig(target_modules=LAYERS, n_frequency=20),
    "shira": peft.ShiraConfig(target_modules=LAYERS, r=2),
    "layer norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


def trained(base: nn.Module, config: peft.PeftConfig) -> Any:
    """A peft model on a copy of the base whose trainable tensors have all moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(config))  # type: ignore[arg-type]
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_base_plus_delta_is_merged(base: nn.Module, model: Any, delta: WeightDelta) -> None:
    """Both sides round twice at the size of the weights, which are below 2 here."""
    delta = WeightDelta(dict(delta))
    with delta.applied_to(base):
        summed = state_of(base)
    merged = model.merge_and_unload().state_dict()
    assert set(summed) == set(merged)
    for name, tensor in summed.items():
        assert torch.allclose(tensor, merged[name], rtol=0, atol=2.0**-22), name
    assert any(bool(change.any()) for change in delta.values())


# peft 0.21.2 builds some transforms with calls that torch itself calls outdated.
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("kind", KINDS)
def test_base_plus_delta_is_the_merged_model(tiny: Build, kind: str) -> None:
    base = tiny("llama", "causal_lm")
    model = trained(base, KINDS[kind])
    before = state_of(model)
    delta = WeightDelta.from_peft(model)
    assert set(delta) <= set(base.state_dict())
    changes = dict(delta)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, change in changes.items():
        assert change.dtype == torch.float32
        assert delta.shape(name) == change.shape == base.get_parameter(name).shape
    assert_base_plus_delta_is_merged(base, model, delta)


@pytest.mark.parametrize("kind", ["lora", "dora", "(ia)3"])
def test_base_plus_delta_is_the_merged_model_when_weights_are_stored_transposed(
    tiny: Build, kind: str
) -> None:
    base = tiny("gpt2", "causal_lm")
    for layer in base.transformer.h:
        layer.attn.c_attn.bias.data.fill_(0.5)
    config = copy.deepcopy(KINDS[kind])
    config.target_modules, config.fan_in_fan_out = {"c_attn"}, True  # type: ignore[attr-defined]
    config.feedforward_modules = set()  # type: ignore[attr-defined]
    model = trained(base, config)
    delta = WeightDelta.from_peft(model)
    assert delta.shape("transformer.h.0.attn.c_attn.weight") == (32, 96)
    # (IA)3 scales the bias too; LoRA lists it with a change of 0.
    assert bool(delta["transformer.h.0.attn.c_attn.bias"].any()) == (kind == "(ia)3")
    assert_base_plus_delta_is_merged(base, model, delta)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_base_plus_delta_is_the_merged_model_for_our_own_peft_type(tiny: Build, name: str) -> None:
    base = tiny(name, "causal_lm")
    model: Any = named("efficientft").prepare(copy.deepcopy(base))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05
    assert_base_plus_delta_is_merged(base, model, WeightDelta.from_peft(model))


def test_delta_of_lora_is_its_product_to_full_precision(tiny: Build) -> None:
    model = trained(tiny("llama", "causal_lm"), KINDS["lora"])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight *= 1e-6  # far below the rounding of the weights
        product = 5 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    delta = WeightDelta.from_peft(model)["model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(delta, product, rtol=1e-5, atol=0)


def test_delta_of_a_bfloat16_adapter_is_not_rounded_to_it(tiny: Build) -> None:
    base = tiny("llama", "causal_lm").to(torch.bfloat16)
    model = trained(base, KINDS["lora"])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    factors = [layer.lora_B["default"].weight, layer.lora_A["default"].weight]
    product = 5 / 3 * factors[0].detach().float() @ factors[1].detach().float()
    delta = WeightDelta.from_peft(model)["model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(delta, product, rtol=1e-5, atol=1e-8)


def test_delta_holds_modules_to_save(tiny: Build) -> None:
    base = tiny("bert", "sequence_classification")
    config = peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=["classifier"])
    model = trained(base, config)
    delta = WeightDelta.from_peft(model)
    assert {"classifier.weight", "classifier.bias"} <= set(delta)
    assert_base_plus_delta_is_merged(base, model, delta)


def test_delta_takes_the_named_adapter_only(tiny: Build) -> None:
    base = tiny("llama", "causal_lm")
    model = trained(base, KINDS["lora"])
    model.add_adapter("other", peft.LoraConfig(target_modules=["v_proj"], r=2))
    assert sorted(WeightDelta.from_peft(model, "other")) == [
        f"model.layers.{layer}.self_attn.v_proj.weight" for layer in (0, 1)
    ]
    assert not any("v_proj" in name for name in WeightDelta.from_peft(model))
    with pytest.raises(InputError, match="adapter 'ohter' is not known: choose one of 'other'"):
        WeightDelta.from_peft(model, "ohter")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_delta_needs_the_base_when_its_biases_trained(tiny: Build, bias: str) -> None:
    base = tiny("bert", "sequence_classification")
    model = trained(base, peft.LoraConfig(target_modules=["query"], r=2, bias=bias))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pass base=, the model it started from"):
        WeightDelta.from_peft(model)
    delta = WeightDelta.from_peft(model, base=base)
    assert ("classifier.bias" in delta) == (bias == "all")
    assert_base_plus_delta_is_merged(base, model, delta)


def test_delta_refuses_a_tied_weight_that_trained_on_one_side_only(tiny: Build) -> None:
    base = tiny("llama", "causal_lm", tie_word_embeddings=True)
    config = peft.LoraConfig(target_modules=["embed_tokens"], r=2)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = trained(base, config)
    with pytest.raises(
        NotMergeable, match=r"embed_tokens\.weight and lm_head\.weight are one tied"
    ):
        WeightDelta.from_peft(model)


def test_delta_of_tied_tokens_counts_once(tiny: Build) -> None:
    base = tiny("llama", "causal_lm", tie_word_embeddings=True)
    model = trained(base, KINDS["lora and tokens"])
    delta = WeightDelta.from_peft(model)
    assert "model.embed_tokens.weight" in delta
    assert "lm_head.weight" not in delta
    assert_base_plus_delta_is_merged(base, model, delta)


def test_from_peft_refuses_what_is_no_change_of_weights(tiny: Build) -> None:
    base = tiny("llama", "causal_lm")
    with pytest.raises(InputError, match="LlamaForCausalLM without adapters"):
        WeightDelta.from_peft(base)
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(NotMergeable, match="PROMPT_TUNING acts on inputs"):
        WeightDelta.from_peft(trained(base, prompt))
    activated = peft.LoraConfig(
        target_modules=LAYERS, alora_invocation_tokens=[1], task_type="CAUSAL_LM"
    )
    with pytest.raises(NotMergeable, match="type LORA has no weight delta here: aLoRA"):
        WeightDelta.from_peft(trained(base, activated))
    merged = trained(base, KINDS["lora"])
    merged.merge_adapter()
    with pytest.raises(InputError, match=r"call unmerge_adapter\(\) first"):
        WeightDelta.from_peft(merged)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_low_rank_form_gives_a_low_rank_delta_back(tiny: Build, name: str) -> None:
    base = tiny(name, "causal_lm", tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    places = sites.of(base)
    chosen = {site.weight: site for site in places.with_roles("query", "value", "down")}
    changes = {}
    for weight in chosen:
        rows, columns = base.get_parameter(weight).shape
        up = torch.randn(rows, 3, generator=generator)
        changes[weight] = up @ torch.randn(3, columns, generator=generator)
    untouched = {"lm_head.weight": torch.zeros(64, 32)}
    form = WeightDelta({**changes, **untouched}).to_peft("lora", rank=3, sites=places)
    assert set(form.relative_errors) == set(changes)
    # A few roundings of float32, whose unit is 6e-8.
    assert max(form.relative_errors.values()) < 1e-6
    model = peft.get_peft_model(copy.deepcopy(base), form.config)
    loaded = peft.set_peft_model_state_dict(model, dict(form.tensors))
    assert not loaded.unexpected_keys
    again = WeightDelta.from_peft(model)
    for weight, change in changes.items():
        assert torch.allclose(again[weight], change, atol=1e-5), weight


def test_low_rank_form_of_a_worked_example_keeps_the_largest_values(tiny: Build) -> None:
    base = tiny("llama", "causal_lm")
    name = "model.layers.0.self_attn.q_proj.weight"
    change = torch.zeros(32, 32)
    change[0, 1], change[5, 2], change[7, 7] = -4.0, 3.0, 0.0
    form = WeightDelta({name: change}).to_peft(rank=1, sites=sites.of(base))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    up, down = form.tensors[f"{prefix}.lora_B.weight"], form.tensors[f"{prefix}.lora_A.weight"]
    assert (up[0, 0].item(), down[0, 1].item()) == pytest.approx((2.0, -2.0))
    assert form.relative_errors[name] == pytest.approx(3 / 5)


def test_low_rank_form_has_the_full_rank_of_a_smaller_weight(tiny: Build) -> None:
    base = tiny("llama", "causal_lm")
    names = [f"model.layers.0.self_attn.{name}.weight" for name in ("q_proj", "k_proj")]
    generator = torch.Generator().manual_seed(0)
    shapes = [base.get_parameter(name).shape for name in names]
    changes = {n: torch.randn(s, generator=generator) for n, s in zip(names, shapes, strict=True)}
    form = WeightDelta(changes).to_peft(rank=100, sites=sites.of(base))
    assert form.config.r == 32
    assert list(form.config.rank_pattern.values()) == [16]
    model = peft.get_peft_model(base, form.config)
    peft.set_peft_model_state_dict(model, dict(form.tensors))
    for name, change in WeightDelta.from_peft(model).items():
        assert torch.allclose(change, changes[name], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.norm.weight", "its role is norm"),
        ("model.embed_tokens.weight", "its role is embedding"),
        ("model.nothing.weight", "it is no weight of a module"),
    ],
)
def test_low_rank_form_refuses_what_lora_cannot_change(tiny: Build, name: str, reason: str) -> None:
    places = sites.of(tiny("llama", "causal_lm"))
    with pytest.raises(NotMergeable, match=reason):
        WeightDelta({name: torch.ones(32)}).to_peft(rank=1, sites=places)


def test_low_rank_form_refuses_wrong_requests(tiny: Build) -> None:
    places = sites.of(tiny("llama", "causal_lm"))
    delta = WeightDelta({"model.norm.weight": torch.zeros(32)})
    with pytest.raises(InputError, match="rank=0"):
        delta.to_peft(rank=0, sites=places)
    with pytest.raises(InputError, match="kind of adapter 'loha' is not known"):
        delta.to_peft("loha", rank=1, sites=places)
    with pytest.raises(NotMergeable, match="changes nothing"):
        delta.to_peft(rank=1, sites=places)
    headed = WeightDelta({}, replaced={"score.weight": torch.ones(2, 2)})
    with pytest.raises(NotMergeable, match=r"score\.weight is replaced whole"):
        headed.to_peft(rank=1, sites=places)

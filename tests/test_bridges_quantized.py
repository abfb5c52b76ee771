"""Deltas on bases whose weights bitsandbytes has packed into 4 and 8 bits, on a CPU."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer

from deltatune import parts
from deltatune.bridges.base_parameters import base_parameters
from deltatune.bridges.quantized import dequantized, is_quantized
from deltatune.errors import NotComposable, NotMergeable
from deltatune.exporting import export
from deltatune.recipe import named
from deltatune.run import finetune
from deltatune.weight_delta import WeightDelta
from tests.adapters import (
    layers_of,
    logits_of,
    shaken,
    token_ids,
    with_delta,
)
from tests.models import tiny
from tests.training import arguments, collate, token_rows

pytest.importorskip("bitsandbytes", reason="the extra [quantized] is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
BITS = {
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    8: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
}
KINDS = sorted(parts.known("deltas"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("base")
    # bitsandbytes packs blocks of 64 numbers.
    tiny("llama", "causal_lm", hidden_size=64).save_pretrained(found)
    return found


def quantized(folder: Path, bits: int) -> Any:
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BITS[bits], dtype=torch.float32, device_map="cpu"
    )
    assert is_quantized(base.model.layers[0].self_attn.q_proj)
    return base.eval()


def whole(folder: Path, model: Any) -> Any:
    """Return a plain model of the numbers that the packed ones stand for."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if is_quantized(module):
            plain.get_submodule(name).weight.data.copy_(dequantized(module))
    return plain


def loss_of(model: Any) -> float:
    with torch.no_grad():
        return float(model(**collate(token_rows(6))).loss)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "bits"), [*((kind, 4) for kind in KINDS), ("low_rank", 8)])
def test_every_delta_does_on_packed_weights_what_it_does_on_their_numbers(
    kind: str, bits: int, folder: Path
) -> None:
    base = quantized(folder, bits)
    plain = whole(folder, base)
    # In evaluation layers of 8 bits round their inputs too.
    wanted = shaken(with_delta(kind, base=plain)).train(bits == 8)
    model = shaken(with_delta(kind, base=base)).train(bits == 8)
    torch.testing.assert_close(logits_of(model), logits_of(wanted), rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(model), gradients(wanted)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)


def test_gradients_pass_packed_weights_after_a_pass_without_them(folder: Path) -> None:
    model = with_delta("low_rank", base=quantized(folder, 4))
    shaken(model)
    wanted = gradients(model)
    model.zero_grad()
    logits_of(model)
    given = gradients(model)
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)


def test_a_delta_never_looks_at_packed_weights_unless_it_must(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_delta("cosine", base=quantized(folder, 4))
    from deltatune.bridges import peft_layer

    def never(layer: Any) -> Any:
        raise AssertionError(f"{layer} was unpacked")

    monkeypatch.setattr(peft_layer, "dequantized", never)
    gradients(model)


@pytest.mark.parametrize("name", ["loca", "efficientft"])
def test_a_run_on_a_packed_base_trains_saves_and_goes_to_either_form(
    name: str, folder: Path, tmp_path: Path
) -> None:
    recipe = named(name, {"coefficients": 40} if name == "loca" else {})
    base = quantized(folder, 4)
    numbers = whole(folder, base)
    packed = {n: p.clone() for n, p in base.named_parameters()}
    model: Any = recipe.prepare(base, task_type="CAUSAL_LM")
    trainer = recipe.attach(
        recipe.trainer_class(Trainer)(
            model=model,
            args=arguments(tmp_path / "run", max_steps=30),
            train_dataset=token_rows(6),
            data_collator=collate,
        )
    )
    before = loss_of(model)
    trainer.train()
    assert loss_of(model) < before
    assert all(torch.equal(p, packed[n]) for n, p in base_parameters(model))
    model.eval().save_pretrained(tmp_path / "adapter")
    wanted = logits_of(model)
    again = peft.PeftModel.from_pretrained(quantized(folder, 4), tmp_path / "adapter").eval()
    assert torch.equal(logits_of(again), wanted)
    plain = peft.PeftModel.from_pretrained(numbers, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(plain), wanted, rtol=1e-4, atol=1e-4)
    published = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    folded = peft.PeftModel.from_pretrained(published, tmp_path / "adapter").merge_and_unload()
    assert torch.isfinite(logits_of(folded)).all()


def test_a_saved_packed_base_is_finetuned_by_its_folder(
    folder: Path, pairs: Path, llama: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    AutoModelForCausalLM.from_pretrained(
        llama, quantization_config=BITS[4], device_map="cpu"
    ).save_pretrained(packed)
    AutoTokenizer.from_pretrained(llama).save_pretrained(packed)
    console = Console(record=True, width=200, file=io.StringIO())
    run = finetune(
        packed,
        pairs,
        "loca",
        output=tmp_path / "run",
        assignments={"coefficients": 40, "training.steps": 3, "training.max_length": 32},
        console=console,
    )
    numbers = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(llama).parameters())
    trained = json.loads((run.folder / "costs.json").read_text(encoding="utf-8"))
    own = trained["trainable_parameters"]  # and two locations to each
    shown = console.export_text()
    assert f"{own:,} ({100 * own / (numbers + 3 * own):.2f} %)" in shown
    assert f"deltatune export {run.folder} --to peft" in shown
    with pytest.raises(NotMergeable, match=r"q_proj is quantised"):
        export(run.folder, to="merged", output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_two_adapters_add_up_on_a_packed_base(folder: Path, tmp_path: Path) -> None:
    model = shaken(with_delta("low_rank", base=quantized(folder, 4)))
    shaken(with_delta("low_rank", base=quantized(folder, 4), seed=1)).save_pretrained(tmp_path)
    first = next(iter(layers_of(model).values()))
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    alone = first(inputs) - first.base_layer(inputs)
    model.load_adapter(str(tmp_path), adapter_name="second")
    model.base_model.set_adapter(["second"])
    second = first(inputs) - first.base_layer(inputs)
    model.base_model.set_adapter(["default", "second"])
    both = first(inputs) - first.base_layer(inputs)
    torch.testing.assert_close(both, alone + second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "low_rank"])
def test_the_change_of_an_adapter_on_packed_weights_is_known(kind: str, folder: Path) -> None:
    base = quantized(folder, 4)
    plain = whole(folder, base)
    found = WeightDelta.from_peft(shaken(with_delta(kind, base=base)))
    wanted = WeightDelta.from_peft(shaken(with_delta(kind, base=plain)))
    assert set(found) == set(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], check_dtype=False)


def test_folding_into_packed_weights_is_refused_and_changes_nothing(folder: Path) -> None:
    model = shaken(with_delta("low_rank", base=quantized(folder, 4)))
    before = logits_of(model)
    with pytest.raises(NotMergeable, match=r"q_proj is quantised, .*base without quantisation"):
        model.merge_adapter()
    assert torch.equal(logits_of(model), before)


def test_training_packed_weights_in_place_is_refused(folder: Path) -> None:
    with pytest.raises(NotComposable, match=r"quantis"):
        named("full").prepare(quantized(folder, 4))

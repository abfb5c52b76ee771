"""An adapter of ours as plain LoRA: the same change, and no need of deltatune to load it."""

from __future__ import annotations

import subprocess
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltatune import sites
from deltatune.bridges.peft_config import delta_config
from deltatune.bridges.peft_lora import save_as_lora, to_lora
from deltatune.deltas.low_rank import LowRank, LowRankDelta
from deltatune.deltas.sum import Sum
from deltatune.errors import InputError, NotMergeable
from deltatune.part import Columns, Rows, Whole
from deltatune.selections.by_role import ByRole
from tests.adapters import layers_of, logits_of, shaken, token_ids, with_delta
from tests.models import tiny

ROOT = "base_model.model."

LOAD_WITH_PEFT_ALONE = """
import sys, torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
for folder in sys.argv[1:]:
    kind = AutoModelForSequenceClassification if "bert" in folder else AutoModelForCausalLM
    base = kind.from_pretrained(folder + "/base")
    model = PeftModel.from_pretrained(base, folder + "/adapter").eval()
    with torch.no_grad():
        logits = model(input_ids=load_file(folder + "/inputs.safetensors")["ids"]).logits
    save_file({"logits": logits}, folder + "/outputs.safetensors")
assert "deltatune" not in sys.modules
"""


def trained(name, task, roles, options, **fields):
    base = tiny(name, task)
    places = sites.of(base)
    selection = ByRole(roles=roles)(base, places)
    return shaken(
        peft.get_peft_model(base, delta_config(options, places, selection, **fields))
    ).eval()


def prepared(folder, name):
    """Write a base, an adapter as LoRA and inputs; return the logits that are wanted."""
    task = "sequence_classification" if name == "bert" else "causal_lm"
    # On fused weights ranks add up (query and value) beside single ones (output).
    fields = {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"} if name == "bert" else {}
    options = Sum.example() if name == "llama" else LowRank(rank=3, alpha=5.0)
    model = trained(name, task, ("query", "value", "output"), options, **fields)
    tiny(name, task).save_pretrained(folder / "base")
    save_as_lora(model, folder / "adapter")
    save_file({"ids": token_ids()}, folder / "inputs.safetensors")
    return logits_of(model)


def test_a_folder_written_as_lora_loads_with_peft_alone(tmp_path):
    wanted = {}
    for name in ("llama", "gpt2", "phi3", "bert"):
        folder = tmp_path / name
        folder.mkdir()
        wanted[name] = prepared(folder, name)
    folders = [str(tmp_path / name) for name in wanted]
    command = [sys.executable, "-c", LOAD_WITH_PEFT_ALONE, *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, logits in wanted.items():
        given = load_file(tmp_path / name / "outputs.safetensors")["logits"]
        # The same float32 factors, multiplied in another order.
        torch.testing.assert_close(given, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "bert"])
@pytest.mark.parametrize("kind", ["low_rank", "sum"])
def test_lora_factors_multiply_to_the_change_of_every_layer(kind, name):
    model = shaken(with_delta(kind, name))
    config, tensors = to_lora(model)
    found = layers_of(model)
    assert len(tensors) == 2 * len(found)
    for path, layer in found.items():
        down = tensors[f"{ROOT}{path}.lora_A.weight"]
        change = tensors[f"{ROOT}{path}.lora_B.weight"] @ down
        own = layer.get_delta_weight("default")
        torch.testing.assert_close(change, own.T if layer.transposed else own)
        assert config.rank_pattern.get(path, config.r) == down.shape[0]
    assert config.fan_in_fan_out == (name == "gpt2")
    assert config.lora_alpha == config.r


def test_lora_ranks_of_a_fused_weight_add_up_and_others_keep_theirs():
    model = trained("gpt2", "causal_lm", ("query", "value", "output", "up"), LowRank(rank=3))
    config, _ = to_lora(model)
    assert config.r == 3  # the most common rank: 4 modules against 2
    fused = {f"transformer.h.{layer}.attn.c_attn": 6 for layer in (0, 1)}
    assert config.rank_pattern == config.alpha_pattern == fused


@pytest.mark.parametrize("part", [Rows(torch.tensor([5, 3, 9])), Columns(torch.tensor([2, 11, 3]))])
def test_lora_of_selected_rows_or_columns_is_zero_elsewhere(part):
    base = tiny("llama", "causal_lm")
    places = sites.of(base)
    weight = places.with_roles("query")[0].weight
    config = delta_config(LowRank(rank=2), places, {weight: part})
    model = shaken(peft.get_peft_model(base, config))
    _, tensors = to_lora(model)
    path = ROOT + weight.removesuffix(".weight")
    change = tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
    layer = next(iter(layers_of(model).values()))
    torch.testing.assert_close(change, layer.get_delta_weight("default"))


def test_lora_matches_full_paths_where_one_is_the_end_of_another(tmp_path):
    class Linears(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)
            self.tower = nn.ModuleDict({"proj": nn.Linear(4, 4)})

        def forward(self, inputs):
            return self.tower["proj"](self.proj(inputs))

    base = Linears()
    site = sites.Site(
        name="proj", module="proj", weight="proj.weight", bias="proj.bias", role="other",
        part=Whole(), layer=None, out_features=4, in_features=4,
    )  # fmt: skip
    places = sites.Sites(places={"proj": site}, model_type="", number_of_layers=0)
    config = delta_config(LowRank(rank=2), places, {"proj.weight": Whole()})
    state = {key: value.clone() for key, value in base.state_dict().items()}
    model = shaken(peft.get_peft_model(base, config))
    save_as_lora(model, tmp_path)
    plain = Linears()
    plain.load_state_dict(state)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path)
    assert loaded.base_model.targeted_module_names == ["proj"]
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(loaded(inputs), model(inputs))


def test_lora_of_another_adapter_is_written_by_its_name(tmp_path):
    model = shaken(with_delta("low_rank"))
    shaken(with_delta("low_rank", seed=1), scale=0.5).save_pretrained(tmp_path / "ours")
    model.load_adapter(str(tmp_path / "ours"), adapter_name="second")
    model.set_adapter("second")
    save_as_lora(model, tmp_path / "lora", "second")
    loaded = peft.PeftModel.from_pretrained(tiny("llama", "causal_lm"), tmp_path / "lora")
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=1e-5, atol=1e-5)


def test_lora_of_entries_is_refused_by_name(tmp_path):
    with pytest.raises(
        NotMergeable, match=r"EntryValues of .*q_proj is no product of two thin factors"
    ):
        save_as_lora(with_delta("entries"), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_lora_with_a_change_of_the_bias_is_refused(monkeypatch):
    monkeypatch.setattr(
        LowRankDelta, "delta_bias", lambda self, bias: torch.zeros(self.out_features)
    )
    with pytest.raises(NotMergeable, match="no LoRA equals it"):
        to_lora(with_delta("low_rank"))


def test_lora_of_unknown_and_foreign_adapters_is_refused():
    with pytest.raises(InputError, match="adapter 'defualt' is not known: choose one of 'default'"):
        to_lora(with_delta("low_rank"), "defualt")
    with pytest.raises(InputError, match="adapter 'default' is not known: none exists here"):
        to_lora(tiny("llama"))
    lora = peft.LoraConfig(target_modules=["q_proj"])
    with pytest.raises(InputError, match="is a LoraConfig, not one of the type DELTA"):
        to_lora(peft.get_peft_model(tiny("llama"), lora))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_itself_converts_our_layers_to_lora_by_singular_values(name):
    # An independent way that reads get_delta_weight: ranks of at most 6, so rank 8 loses nothing.
    model = shaken(with_delta("sum", name))
    config, tensors = peft.convert_to_lora(model, rank=8)
    loaded = peft.get_peft_model(tiny(name, "causal_lm"), config).eval()
    peft.set_peft_model_state_dict(loaded, tensors)
    # Singular values are exact to a few units of float32 of the largest.
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=1e-4, atol=1e-4)

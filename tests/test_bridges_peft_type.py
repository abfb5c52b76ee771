"""The facts of peft that one type for every delta rests on."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import peft
import pytest
import torch
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils import PeftType
from safetensors.torch import load_file

from deltatune.bridges.peft_config import DeltaConfig
from deltatune.bridges.peft_model import DeltaModel
from deltatune.bridges.peft_type import DELTA, register
from deltatune.errors import NotComposable
from tests import adapters
from tests.adapters import logits_of, shaken, token_ids, with_delta
from tests.models import tiny

LORA = {"r": 2, "target_modules": ["q_proj"]}


def test_peft_enumeration_takes_a_type_more():
    assert PeftType.DELTA is DELTA
    assert PeftType("DELTA") is PeftType["DELTA"] is DELTA
    assert DELTA in list(PeftType)
    assert "DELTA" in list(PeftType)  # peft looks names up among the members like this
    assert DELTA == "DELTA"
    assert DELTA.value == DELTA.name == "DELTA"
    assert hash(DELTA) == hash("DELTA")
    assert copy.deepcopy(DELTA) is DELTA
    assert json.dumps(DELTA) == '"DELTA"'
    assert PeftType.LORA in list(PeftType)


def test_register_is_harmless_when_repeated():
    register()
    register()
    assert PEFT_TYPE_TO_CONFIG_MAPPING[DELTA] is DeltaConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[DELTA] is DeltaModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[DELTA] == "delta_"


def test_register_refuses_a_strangers_type_of_the_same_name(monkeypatch):
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, DELTA, peft.LoraConfig)
    with pytest.raises(
        NotComposable, match=r"already has a type DELTA of peft\.tuners\.lora\.config"
    ):
        register()


def test_peft_model_refuses_a_second_type_beside_ours():
    model = with_delta("low_rank")
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("other", peft.LoraConfig(**LORA))
    assert logits_of(model).isfinite().all()


def test_peft_model_refuses_ours_as_a_second_type():
    base = tiny("llama", "causal_lm")
    config = adapters.config_for("low_rank", base)
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA))
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("other", config)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_a_base_with_adapters_of_another_type_is_refused():
    config = adapters.config_for("low_rank", tiny("llama", "causal_lm"))
    inner = peft.get_peft_model(
        tiny("llama", "causal_lm"), peft.LoraConfig(**LORA)
    ).get_base_model()
    message = r"q_proj already carries an adapter of another peft type \(Linear\).*merge it first"
    with pytest.raises(NotComposable, match=message):
        peft.get_peft_model(inner, config)


def test_importing_deltatune_is_enough_for_peft_to_load_an_adapter(tmp_path):
    model = shaken(with_delta("low_rank"))
    model.get_base_model().config.save_pretrained(tmp_path / "config")
    model.save_pretrained(tmp_path / "adapter")
    base = tiny("llama", "causal_lm")
    base.save_pretrained(tmp_path / "base")
    torch.save(token_ids(), tmp_path / "ids.pt")
    program = """
import sys, torch, deltatune
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
base = AutoModelForCausalLM.from_pretrained(folder + "/base")
model = PeftModel.from_pretrained(base, folder + "/adapter")
ids = torch.load(folder + "/ids.pt", weights_only=True)
with torch.no_grad():
    save_file({"logits": model(input_ids=ids).logits}, folder + "/logits.safetensors")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    given = load_file(tmp_path / "logits.safetensors")["logits"]
    torch.testing.assert_close(given, logits_of(model), rtol=1e-5, atol=1e-5)

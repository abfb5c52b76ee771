"""Encoders that would copy the tokens they are to predict are told from decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deltatune.causality import check_causal
from tests.folders import completions, model_folder, our_line, rows_file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt2", "bert", "roberta"])
def test_decoder_passes(name: str, dtype: torch.dtype, tiny: Any) -> None:
    check_causal(tiny(name, "causal_lm").to(dtype), name)  # tiny makes BERT a decoder


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_encoder_with_an_output_head_is_refused_in_one_line(
    name: str, tmp_path: Path, command: Any
) -> None:
    folder = model_folder(tmp_path / name, name, "causal_lm")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "is_decoder": False}))
    data = rows_file(tmp_path / "pairs.jsonl", completions())
    code, _, err = command("train", "--model", folder, "--data", data, "--output", tmp_path / "run")
    assert code == 2
    assert "is an encoder" in our_line(err)
    assert not (tmp_path / "run").exists()


def test_broken_weights_are_not_taken_for_an_encoder(tiny: Any) -> None:
    model = tiny("llama", "causal_lm")
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    check_causal(model, "llama")  # scoring it before training finds it out, and says so

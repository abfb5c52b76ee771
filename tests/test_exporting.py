"""Exports of models that look for the end token, and runs of tokenizers that do not write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import processors

from deltatune.errors import InputError, NotMergeable
from deltatune.exporting import export
from deltatune.run import finetune
from tests.folders import classifications, model_folder, rows_file, tokenizer


def classify(model: Path, tmp_path: Path, recipe: str = "lora") -> Any:
    return finetune(
        model,
        rows_file(tmp_path / "rows.jsonl", classifications()),
        recipe,
        output=tmp_path / "run",
        assignments={"training.steps": 1},
        console=Console(quiet=True),
    )


def test_t5_classifies_and_exports_where_texts_end_with_its_end_token(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "t5", "t5")
    words: Any = tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    words.save_pretrained(model)
    run = classify(model, tmp_path)
    for kind in ("merged", "peft", "lora"):
        assert export(run.folder, kind).ratio < 1e-5


@pytest.mark.parametrize("kind", ["peft", "lora"])
def test_run_in_place_has_no_adapter_to_export(kind: str, tmp_path: Path) -> None:
    run = classify(model_folder(tmp_path / "bert", "bert", "base"), tmp_path, "efficientft_full")
    with pytest.raises(NotMergeable, match="export with --to merged"):
        export(run.folder, kind)
    assert not (run.folder / f"export-{kind}").exists()


def test_tokens_that_the_model_refuses_end_the_run_before_training(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "t5", "t5")  # its tokenizer writes no end token
    with pytest.raises(InputError, match=r"refuses the examples of validation: .*<eos> token"):
        classify(model, tmp_path)
    assert not (tmp_path / "run").exists()

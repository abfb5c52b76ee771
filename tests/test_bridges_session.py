"""How a recipe's training settings reach transformers' Trainer."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import PreTrainedModel

from deltatune.bridges.session import repeated_examples
from deltatune.run import finetune
from tests.folders import completions, model_folder, rows_file


@pytest.mark.parametrize(("bound", "wanted"), [(0, 8), (3, 3), (50, 8)])
def test_steps_are_a_bound_beside_the_epochs(bound: int, wanted: int, tmp_path: Path) -> None:
    # 25 rows, 2 held back: 23 in batches of 3 are 8 micro-batches, in pairs 4 steps an epoch.
    settings = {
        "training.steps": bound,
        "training.epochs": 2,
        "training.batch_size": 3,
        "training.accumulation": 2,
        "training.max_length": 32,
    }
    rows = rows_file(tmp_path / "rows.jsonl", completions(25))
    llama = model_folder(tmp_path / "llama")
    run = finetune(llama, rows, output=tmp_path / "run", assignments=settings)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, wanted + 1))


def _living_models() -> set[int]:
    return {id(o) for o in gc.get_objects() if issubclass(type(o), PreTrainedModel)}


@pytest.mark.parametrize("recipe", ["lora", "full", "prefix_tuning"])
def test_session_leaves_no_model_behind_without_a_collection(recipe: str, tmp_path: Path) -> None:
    settings = {"training.steps": 2, "training.batch_size": 3, "training.max_length": 32}
    rows = rows_file(tmp_path / "rows.jsonl", completions(25))
    llama = model_folder(tmp_path / "llama")
    gc.collect()
    before = _living_models()
    gc.disable()  # tensors are few and large objects: its turn may come after many runs
    try:
        finetune(llama, rows, recipe, output=tmp_path / "run", assignments=settings)
        assert not _living_models() - before
    finally:
        gc.enable()


@pytest.mark.parametrize("examples", [8, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_repeated_examples_are_those_that_accelerate_takes_twice(
    examples: int, processes: int
) -> None:
    def batches() -> BatchSampler:
        return BatchSampler(SequentialSampler(range(examples)), batch_size=2, drop_last=False)

    if processes == 1:
        taken = sum(len(batch) for batch in batches())
    else:
        shards = [
            BatchSamplerShard(batches(), num_processes=processes, process_index=rank)
            for rank in range(processes)
        ]
        taken = sum(len(batch) for shard in shards for batch in shard)
    assert taken - examples == repeated_examples(examples, 2, processes)

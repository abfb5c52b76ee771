"""What the siamese block costs: training steps, generation and memory against its host alone.

The host is LoRA on query and value, of all layers, or of the upper half, where the layers below are
computed and cached once. Random Llamas, one thread, float32 on a CPU; bfloat16 with
`--device cuda`. A training step has one forward pass more, without a graph: about 1.5 times the
host's work at the least, were nothing shared. The paper's own generation was 5 to 13 % slower than
the host, with both passes side by side on one GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contenders import RACE, TINY, Contender, Shape, quiet
from racing import counted_flops, interval, paired_times, peak_bytes, write

from deltatune import Recipe
from deltatune.recipe import named

PROMPT, NEW = 32, 32  # tokens


def recipes(shape: Shape) -> dict[str, tuple[Recipe, Recipe]]:
    """Return the host and the host with the block, by which layers change."""
    upper = list(range(shape.layers // 2, shape.layers))
    found = {}
    for name, layers in {"all layers": [], "upper half": upper}.items():
        fields = {"selection.layers": layers}
        host = named("lora", {"rank": 16}).with_fields(fields)
        found[name] = (host, named("imsm", {"host": host, "gate_dropout": 0.0}))
    return found


def contender(recipe: Recipe, shape: Shape, dtype: torch.dtype, device: str) -> Contender:
    model: Any = recipe.prepare(shape.base(dtype, device), task_type="CAUSAL_LM").train()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "block" not in name:
            nn.init.normal_(parameter, std=0.02)  # two memories that differ
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    return Contender(model=model, optimizer=optimizer, tokens=shape.tokens(device))


def generation(one: Contender) -> Callable[[], Tensor]:
    model: Any = one.model
    prompt = one.tokens[:, :PROMPT]

    def generate() -> Tensor:
        model.eval()
        given: Tensor = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        )
        model.train()
        return given

    return generate


def peak(one: Contender) -> int:
    if one.tokens.device.type == "cpu":
        return peak_bytes(one.step)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    one.step()
    return torch.cuda.max_memory_allocated() - before


def row(name: str, shape: Shape, dtype: torch.dtype, device: str, pairs: int) -> dict[str, Any]:
    host, own = (contender(one, shape, dtype, device) for one in recipes(shape)[name])
    few = max(3, pairs // 3)
    spent = paired_times(generation(host), generation(own), pairs=few, warm_up=1)
    return {
        "changed": name,
        "width": shape.width,
        "sequences": shape.sequences,
        "tokens": shape.sequences * shape.length,
        "flops_to_host_ratio": counted_flops(own.step) / counted_flops(host.step),
        "train_step_to_host": interval(paired_times(own.step, host.step, pairs=pairs)),
        "generation_rate_to_host": interval(spent),
        "peak_memory_to_host_ratio": peak(own) / peak(host),
        "parameters_beside_host": own.trainable_parameters - host.trainable_parameters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    on_gpu = given.device != "cpu"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    shapes = [TINY] if given.tiny else [dataclasses.replace(RACE, sequences=n) for n in (1, 4)]
    if on_gpu and not given.tiny:
        large = {"width": 4096, "layers": 32, "inner": 11008, "heads": 32, "key_value_heads": 32}
        shapes = [dataclasses.replace(RACE, sequences=n, **large) for n in (1, 8)]
    rows = []
    for shape in shapes:
        long = dataclasses.replace(shape, length=max(shape.length, PROMPT + NEW))
        for name in recipes(long):
            rows.append(row(name, long, dtype, given.device, given.pairs))
            print(rows[-1], flush=True)
    whole = [one for one in rows if one["changed"] == "all layers"]
    figures = {
        "train_step_to_host_ratio": max(o["train_step_to_host"]["median_ratio"] for o in whole),
        "generation_rate_to_host_ratio": min(
            o["generation_rate_to_host"]["median_ratio"] for o in whole
        ),
        "peak_memory_to_host_ratio": max(o["peak_memory_to_host_ratio"] for o in whole),
    }
    if given.tiny:
        print(figures)
    else:
        write(__file__, figures, rows)


if __name__ == "__main__":
    main()

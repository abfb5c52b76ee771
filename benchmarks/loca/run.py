"""A training step of the cosine delta against peft's LoRA and FourierFT, on the same modules.

A random Llama of each width (4 layers, on a CPU 1 from width 2048 on; MLP 2.75 times the width,
vocabulary 2,000), query and value adapted: LoCA with 1,000 coefficients in a matrix, once in a step
of coefficients (more than nine in ten of a training) and once in one of locations, LoRA of rank 8,
FourierFT of 1,000. Rows of 128 tokens, batches of 1 to 16. A step is forward, backward and AdamW;
ratios are medians over pairs of the process's CPU time, with one thread. Peak memory is what a step
allocates above the model, from the allocator's own record.

On a GPU the width is 4096 and the dtype bfloat16, with and without `torch.compile`:

    python benchmarks/loca/run.py --device cuda

`--tiny` rehearses all of it in seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contenders import Contender, Shape, peft_lora, quiet
from racing import counted_flops, interval, paired_times, peak_bytes, write

from deltatune import Recipe
from deltatune.deltas.cosine import CosineDelta, CosineSpectrum
from deltatune.selections.by_role import ByRole

NUMBER = 1000
BATCHES = (1, 2, 4, 8, 16)
LENGTH = 128
MODULES = ["q_proj", "v_proj"]


def shape_of(width: int, sequences: int, layers: int, length: int) -> Shape:
    return Shape(
        width=width,
        layers=layers,
        inner=width * 11 // 4,
        heads=max(2, width // 64),
        key_value_heads=max(2, width // 64),
        vocabulary=2000,
        sequences=sequences,
        length=length,
    )


def contender(model: nn.Module, shape: Shape, device: str) -> Contender:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Contender(
        model=model.train(),
        optimizer=torch.optim.AdamW(trained, lr=1e-4),
        tokens=shape.tokens(device),
    )


def deltas(model: nn.Module) -> list[CosineDelta]:
    return [module for module in model.modules() if isinstance(module, CosineDelta)]


def loca(
    shape: Shape, dtype: torch.dtype, device: str, *, moves: str, way: str = "auto"
) -> Contender:
    """Return LoCA with coefficients that are not zero, where one of its two blocks trains."""
    number = min(NUMBER, shape.width**2 // 8)
    options = CosineSpectrum(coefficients=number, way=way)
    recipe = Recipe(delta=options, selection=ByRole(roles=("query", "value")))
    model = recipe.prepare(shape.base(dtype, device), task_type="CAUSAL_LM")
    for delta in deltas(model):
        nn.init.normal_(delta.coefficients, std=1e-3)
        delta.coefficients.requires_grad_(moves == "coefficients")
        delta.locations.requires_grad_(moves == "locations")
    return contender(model, shape, device)


def lora(shape: Shape, dtype: torch.dtype, device: str) -> Contender:
    return peft_lora(shape, dtype, rank=8, projections=tuple(MODULES), device=device)


def fourierft(shape: Shape, dtype: torch.dtype, device: str) -> Contender:
    number = min(NUMBER, shape.width**2 // 8)
    config = peft.FourierFTConfig(
        n_frequency=number, scaling=1.0, target_modules=MODULES, task_type="CAUSAL_LM"
    )
    return contender(peft.get_peft_model(shape.base(dtype, device), config), shape, device)


def peak(one: Contender) -> int:
    """Return the most bytes that one step allocates at once."""
    if one.tokens.device.type == "cpu":
        return peak_bytes(one.step)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    one.step()
    return torch.cuda.max_memory_allocated() - before


def row(
    shape: Shape, dtype: torch.dtype, device: str, pairs: int, compiled: bool
) -> dict[str, Any]:
    others = {
        "lora": lora(shape, dtype, device),
        "fourierft": fourierft(shape, dtype, device),
        "locations": loca(shape, dtype, device, moves="locations"),
    }
    own = loca(shape, dtype, device, moves="coefficients")
    if compiled:
        for one in (own, *others.values()):
            one.model.compile()
    found: dict[str, Any] = {
        "width": shape.width,
        "tokens": shape.sequences * shape.length,
        "compiled": compiled,
        "way": deltas(own.model)[0].way_for(shape.sequences * shape.length),
        "flops_to_lora_ratio": counted_flops(own.step) / counted_flops(others["lora"].step),
        "time_to_lora": interval(paired_times(own.step, others["lora"].step, pairs=pairs)),
        "time_to_fourierft": interval(
            paired_times(own.step, others["fourierft"].step, pairs=max(3, pairs // 3))
        ),
        "time_of_location_step_to_lora": interval(
            paired_times(others["locations"].step, others["lora"].step, pairs=max(3, pairs // 2))
        ),
    }
    peaks = {name: peak(one) for name, one in {"own": own, **others}.items()}
    found["peak_memory_to_lora_ratio"] = peaks["own"] / peaks["lora"]
    found["peak_memory_of_location_step_to_lora_ratio"] = peaks["locations"] / peaks["lora"]
    found["peak_memory_to_fourierft_ratio"] = peaks["own"] / peaks["fourierft"]
    return found


def ways(shape: Shape, dtype: torch.dtype, device: str, pairs: int) -> dict[str, Any]:
    """Return the step time of each way over that of `transform`."""
    plain = loca(shape, dtype, device, moves="coefficients", way="transform")
    found: dict[str, Any] = {"width": shape.width, "tokens": shape.sequences * shape.length}
    for way in ("factored", "sparse", "fast", "dense"):
        other = loca(shape, dtype, device, moves="coefficients", way=way)
        ratios = paired_times(other.step, plain.step, pairs=pairs)
        found[f"{way}_to_transform_ratio"] = interval(ratios)["median_ratio"]
    return found


def worst(rows: list[dict[str, Any]], name: str) -> float:
    values = [row[name] for row in rows]
    return max(v["median_ratio"] if isinstance(v, dict) else v for v in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--widths", type=int, nargs="*", default=None)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    on_gpu = given.device != "cpu"
    widths = given.widths or ([64] if given.tiny else [4096] if on_gpu else [384, 768, 2048])
    dtype = torch.bfloat16 if on_gpu else torch.float32
    rows, by_way = [], []
    for width in widths:
        layers, length = (1 if width >= 2048 and not on_gpu else 4), (16 if given.tiny else LENGTH)
        for sequences in given.batches:
            shape = shape_of(width, sequences, layers, length)
            for compiled in (False, True) if on_gpu else (False,):
                rows.append(row(shape, dtype, given.device, given.pairs, compiled))
                print(rows[-1], flush=True)
        by_way += [
            ways(shape_of(width, n, layers, length), dtype, given.device, max(3, given.pairs // 5))
            for n in (given.batches[0], given.batches[-1])
        ]
        print(by_way[-2:], flush=True)
    figures = {
        "worst_step_to_lora_ratio": worst(rows, "time_to_lora"),
        "worst_location_step_to_lora_ratio": worst(rows, "time_of_location_step_to_lora"),
        "worst_peak_memory_to_lora_ratio": worst(rows, "peak_memory_to_lora_ratio"),
        "worst_step_to_fourierft_ratio": worst(rows, "time_to_fourierft"),
        "worst_peak_memory_to_fourierft_ratio": worst(rows, "peak_memory_to_fourierft_ratio"),
    }
    if given.tiny:
        print(figures)
    else:
        write(__file__, figures, [*rows, *by_way])


if __name__ == "__main__":
    main()

"""Attention of bfloat16 training on a CPU: torch's kernel against the same in float32.

Forward and backward of one call, heads of 32 to 128 numbers, 16 to 512 tokens, a boolean mask, one
thread; the ratio of float32 to bfloat16 over pairs of the process's CPU time. Where it is below 1
up to which length decides `SHORT` in `bridges/short_attention.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from racing import Step, interval, paired_times, write

from deltatune.bridges.short_attention import SHORT

TOKENS = (16, 32, 56, 64, 96, 128, 160, 191, 192, 256, 512)
SIZES = (32, 64, 128)
SCALARS = 2**19  # of queries in a call, about


def step_of(tokens: int, size: int, *, in_float32: bool) -> Step:
    """Return a call with its backward pass."""
    heads = max(1, SCALARS // (tokens * size))
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, tokens, size, generator=generator).bfloat16().requires_grad_()
        for _ in range(3)
    ]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()

    def attended() -> Tensor:
        if not in_float32:
            return functional.scaled_dot_product_attention(*inputs, attn_mask=mask)
        wide = [tensor.float() for tensor in inputs]
        return functional.scaled_dot_product_attention(*wide, attn_mask=mask).bfloat16()

    def step() -> Tensor:
        output = attended().sum()
        output.backward()
        return output

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        for tokens in TOKENS:
            ours, theirs = (step_of(tokens, size, in_float32=wide) for wide in (True, False))
            found = interval(paired_times(ours, theirs, pairs=given.pairs))
            rows.append({"head_size": size, "tokens": tokens, "float32_to_bfloat16": found})
            print(size, tokens, round(found["median_ratio"], 3), flush=True)
    short = [row for row in rows if row["tokens"] < SHORT]
    long = [row for row in rows if row["tokens"] >= SHORT]
    figures = {
        "worst_short_ratio": max(row["float32_to_bfloat16"]["median_ratio"] for row in short),
        "best_short_ratio": min(row["float32_to_bfloat16"]["median_ratio"] for row in short),
        "best_long_ratio": min(row["float32_to_bfloat16"]["median_ratio"] for row in long),
    }
    write(__file__, figures, rows)


if __name__ == "__main__":
    main()

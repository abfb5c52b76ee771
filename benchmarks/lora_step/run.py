"""One training step of our low-rank delta against peft's LoRA and full tuning, on the same work.

The shape is PERFORMANCE's tiny class: a random Llama of width 512, 4 layers, MLP 1408, vocabulary
8000, 2 x 256 tokens; rank 16 on all seven projections. Both adapters start from the same numbers,
and the race only counts when losses and gradients agree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import peft
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from racing import counted_flops, interval, paired_times, saved_bytes, write

from deltatune import Recipe
from deltatune.deltas.low_rank import LowRank
from deltatune.selections.by_role import ByRole

ROLES = ("query", "key", "value", "output", "gate", "up", "down")
RANK = 16


def base(dtype: torch.dtype, width: int, device: torch.device) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=8000,
        max_position_embeddings=256,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(settings).to(device=device, dtype=dtype)


def ours(model: nn.Module, dropout: float) -> nn.Module:
    delta = LowRank(rank=RANK, alpha=float(RANK), dropout=dropout)
    recipe = Recipe(delta=delta, selection=ByRole(roles=ROLES))
    return recipe.prepare(model, task_type="CAUSAL_LM").train()


def theirs(model: nn.Module, dropout: float) -> nn.Module:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config).train()


def factors(model: nn.Module, kind: str) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if kind in name and p.requires_grad]


def same_start(mine: nn.Module, other: nn.Module) -> None:
    torch.manual_seed(1)
    down, up = factors(mine, "delta.down"), factors(mine, "delta.up")
    for pair in ((down, factors(other, "lora_A")), (up, factors(other, "lora_B"))):
        for left, right in zip(*pair, strict=True):
            with torch.no_grad():
                left.copy_(torch.randn_like(left) * 0.02)
                right.copy_(left)


def forward_of(model: nn.Module, ids: Tensor):
    return lambda: model(input_ids=ids, labels=ids, use_cache=False).loss


def step_of(model: nn.Module, ids: Tensor):
    forward = forward_of(model, ids)

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()
        return loss

    return step


def agreement(mine: nn.Module, other: nn.Module, ids: Tensor) -> dict[str, float]:
    losses = [float(step_of(model, ids)()) for model in (mine, other)]
    cosines = []
    for kinds in (("delta.down", "lora_A"), ("delta.up", "lora_B")):
        for left, right in zip(factors(mine, kinds[0]), factors(other, kinds[1]), strict=True):
            cosines.append(
                float(torch.cosine_similarity(left.grad.ravel(), right.grad.ravel(), dim=0))
            )
    return {"loss_ours": losses[0], "loss_peft": losses[1], "worst_gradient_cosine": min(cosines)}


def race(dtype: torch.dtype, dropout: float, pairs: int, width: int, device: torch.device) -> dict:
    ids = torch.randint(0, 8000, (2, 256), generator=torch.Generator().manual_seed(0)).to(device)
    mine, other = (
        ours(base(dtype, width, device), dropout),
        theirs(base(dtype, width, device), dropout),
    )
    full = base(dtype, width, device).train()
    same_start(mine, other)
    proof = agreement(mine.eval(), other.eval(), ids)
    if proof["worst_gradient_cosine"] < 0.999:
        raise SystemExit(f"not the same work: {proof}")
    mine.train(), other.train()
    step, peft_step, full_step = (step_of(model, ids) for model in (mine, other, full))
    row = {
        "dtype": str(dtype).removeprefix("torch."),
        "dropout": dropout,
        **proof,
        "flops": counted_flops(step),
        "peft_flops": counted_flops(peft_step),
        "full_flops": counted_flops(full_step),
        "saved_bytes": saved_bytes(mine, forward_of(mine, ids)),
        "peft_saved_bytes": saved_bytes(other, forward_of(other, ids)),
        "full_saved_bytes": saved_bytes(full, forward_of(full, ids)),
        "time": interval(paired_times(step, peft_step, pairs=pairs)),
        "time_peft_to_itself": interval(paired_times(peft_step, step_of(other, ids), pairs=pairs)),
        "time_full_to_peft": interval(paired_times(full_step, peft_step, pairs=max(pairs // 3, 4))),
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, figures = [], {}
    for dtype, dropout in ((torch.float32, 0.0), (torch.bfloat16, 0.0), (torch.bfloat16, 0.05)):
        row = race(dtype, dropout, given.pairs, given.width, torch.device(given.device))
        rows.append(row)
        name = f"{row['dtype']}{'_dropout' if dropout else ''}"
        figures[f"{name}_time_to_peft_ratio"] = row["time"]["median_ratio"]
        figures[f"{name}_flops_to_peft_ratio"] = row["flops"] / row["peft_flops"]
        figures[f"{name}_saved_to_peft_ratio"] = row["saved_bytes"] / row["peft_saved_bytes"]
        figures[f"{name}_saved_to_full_ratio"] = row["saved_bytes"] / row["full_saved_bytes"]
    write(__file__, figures, rows)


if __name__ == "__main__":
    main()

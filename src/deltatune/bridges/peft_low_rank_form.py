"""Any change of weights as a plain LoRA adapter: the nearest one of a given rank."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import peft
import torch
from torch import Tensor

from deltatune.errors import InputError, NotMergeable
from deltatune.sites import Site, Sites

__all__ = ["LowRankForm", "low_rank_form"]

ROOT = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LowRankForm:
    """A plain LoRA adapter, and how far it is from the change it was made from.

    Args:
        config: for `peft.get_peft_model`.
        tensors: for `peft.set_peft_model_state_dict`.
        relative_errors: base weight name -> Frobenius norm of what LoRA leaves out over that of
            the change, in [0, 1].
    """

    config: peft.LoraConfig
    tensors: Mapping[str, Tensor]
    relative_errors: Mapping[str, float] = field(default_factory=dict)


def low_rank_form(changes: Mapping[str, Tensor], sites: Sites, *, rank: int) -> LowRankForm:
    """Cut every change to its largest singular values, one weight at a time.

    By Eckart and Young no other factors of this rank are nearer. Each factor takes the square root
    of the singular values, the scale of LoRA is 1, and the entry of largest magnitude in each left
    vector is positive (the first of several), so the factors do not depend on the sign that the SVD
    happened to choose. Equal singular values leave the vectors of their space undetermined, and
    where the cut falls between two of them, which one is kept; the error is the same.

    Args:
        changes: base weight name -> change, as stored. One that is 0 everywhere is left out.
        sites: of the base: which weights are linear layers, and which are stored `(in, out)`.
        rank: of the factors, from 1; a smaller weight gets min(out, in).

    Raises:
        InputError: a rank below 1, or a name the base does not have.
        NotMergeable: a weight that LoRA cannot change (a bias, norm, embedding or tied weight) does
            change, or nothing changes at all.
    """
    if rank < 1:
        raise InputError(f"rank={rank} is not allowed: give an integer from 1")
    places = {site.weight: site for site in sites.values()}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    errors: dict[str, float] = {}
    transposed = []
    for name in changes:
        change = changes[name]
        if not bool(change.any()):
            continue
        site = _linear(name, places, sites)
        up, down, errors[name] = _factors(change.T if site.transposed else change, rank)
        ranks[site.module] = down.shape[0]
        tensors[f"{ROOT}{site.module}.lora_A.weight"] = down
        tensors[f"{ROOT}{site.module}.lora_B.weight"] = up
        transposed.append(site.transposed)
    if not ranks:
        raise NotMergeable("the delta changes nothing, so there is no LoRA to make of it")
    config = _configuration(ranks, sites, fan_in_fan_out=all(transposed))
    return LowRankForm(config=config, tensors=tensors, relative_errors=errors)


def _linear(name: str, places: Mapping[str, Site], sites: Sites) -> Site:
    site = places.get(name)
    reason = ""
    if site is None:
        reason = "it is no weight of a module (a bias or a buffer)"
    elif site.role in ("embedding", "norm"):
        reason = f"its role is {site.role}"
    elif site.in_features == 1 or not name.endswith(".weight"):
        reason = "it is no weight of a linear layer"
    elif sites.tied.get(name):
        reason = f"it is tied to {sites.tied[name][0]}"
    if site is None or reason:
        raise NotMergeable(
            f"the change of {name} cannot be LoRA: {reason}; keep the delta as it is"
        )
    return site


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return `up (out, rank)`, `down (rank, in)` and the relative error of their product."""
    left, values, right = torch.linalg.svd(change.to(torch.float32), full_matrices=False)
    kept = min(rank, values.numel())
    left, right = left[:, :kept], right[:kept]  # (out, kept), (kept, in)
    largest = left.abs().argmax(dim=0, keepdim=True)
    signs = left.gather(0, largest).sign()  # (1, kept)
    roots = values[:kept].sqrt()
    up = (left * signs * roots).contiguous()
    down = (right * signs.T * roots[:, None]).contiguous()
    # Measured on the factors rather than read off the values that were cut, whose squares drown
    # in the rounding of the others.
    lost = torch.linalg.vector_norm(change - up @ down) / torch.linalg.vector_norm(change)
    return up, down, float(lost)


def _configuration(
    ranks: Mapping[str, int], sites: Sites, *, fan_in_fan_out: bool
) -> peft.LoraConfig:
    modules = sorted(ranks)
    paths = {site.module for site in sites.values()}
    # peft takes names in a list for the ends of paths, which another tower may share; a string is
    # a pattern for the whole path.
    is_ambiguous = any(path.endswith(f".{own}") for own in modules for path in paths)
    rank = max(ranks.values())
    smaller = {f"^{re.escape(own)}": ranks[own] for own in modules if ranks[own] != rank}
    return peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=smaller,
        alpha_pattern=dict(smaller),
        target_modules="|".join(map(re.escape, modules)) if is_ambiguous else modules,
        fan_in_fan_out=fan_in_fan_out,
        inference_mode=True,
    )

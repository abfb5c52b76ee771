"""AdaLoRA in any training loop: its penalty, its shrinking ranks, and both across a resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.bridges.carrier import Injection, Rhythm
from deltatune.bridges.peft_host import PeftCarrier
from deltatune.errors import InputError, NotMergeable
from deltatune.sites import Sites

__all__ = ["AdaLoraCarrier"]

ADAPTER = "default"
FACTORS = (f".lora_A.{ADAPTER}", f".lora_B.{ADAPTER}")
VALUES = f".lora_E.{ADAPTER}"


class AdaLoraCarrier(PeftCarrier):
    """Carries `peft.AdaLoraConfig`.

    peft leaves two things to the training loop: to hand out ranks after every step, and to know the
    number of steps in advance. The phases `tinit` and `tfinal` are read as shares of `total_step`,
    and stretched to the steps of the run.
    """

    def placed(self, injection: Injection) -> Any:
        """Return the configuration with its places.

        Raises:
            InputError: no rank is to be given up, so that there is nothing to hand out.
        """
        config = super().placed(injection)
        if not 0 < config.target_r < config.init_r:
            raise InputError(
                f"target_r={config.target_r} is not allowed: give an integer from 1 to "
                f"{config.init_r - 1}, below init_r, or take the recipe lora for fixed ranks"
            )
        return config

    def prepare(self, base: nn.Module, injection: Injection) -> nn.Module:
        """Put the adapter in, and beside it the state of its ranks, as part of the model."""
        model: Any = super().prepare(base, injection)
        # Not on peft's own tuner, all of which it would save with the adapter.
        model.rank_state = _RankState(model.base_model.model)
        return model  # type: ignore[no-any-return]

    def rhythm(self, model: nn.Module) -> Rhythm:
        """Ask for the penalty of every step, and for a call after it."""
        ranks = _Ranks(model)
        # Where a matrix loses all its ranks, its singular values are 0 as at the start.
        resting = [name for name, _ in model.named_parameters() if name.endswith(VALUES)]
        return Rhythm(
            auxiliary=(ranks.penalty,),
            apart=ranks.apart,
            begin=ranks.begin,
            after_step=ranks.after_step,
            may_rest=frozenset(resting),
        )

    def figures(self, model: nn.Module, sites: Sites) -> Mapping[str, Any]:
        """Return what each role kept of the ranks: under unequal rates one may take them all."""
        state: Any = model.rank_state
        roles = {site.module: site.role for site in sites.values()}
        kept: dict[str, int] = {}
        for name, ranks in state.kept().items():
            role = roles.get(name.removesuffix(VALUES), "other")
            kept[role] = kept.get(role, 0) + int(ranks.sum())
        total = max(sum(kept.values()), 1)
        return {
            "final_rank_by_role": kept,
            "final_rank_share_by_role": {role: ranks / total for role, ranks in kept.items()},
        }

    def save_as_lora(self, model: nn.Module, folder: Path) -> None:
        """Refuse: the file of AdaLoRA has another form.

        Raises:
            NotMergeable: always.
        """
        raise NotMergeable(
            "AdaLoRA keeps singular values between its factors, which plain LoRA has no place for: "
            "export with --to peft or --to merged"
        )


class _Ranks:
    """Hands out the ranks of one model."""

    def __init__(self, model: Any) -> None:
        self.tuner = model.base_model
        self.state: _RankState = model.rank_state
        self.config = self.tuner.peft_config[ADAPTER]

    def begin(self, steps: int) -> None:
        """Stretch the schedule to the steps of the run."""
        given = self.config.total_step
        # Rounded down, the two always leave a step between them.
        self.config.tinit = self.config.tinit * steps // given
        self.config.tfinal = self.config.tfinal * steps // given
        self.tuner.rankallocator.set_total_step(steps)

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the weighted mean distance of all factors from orthonormal ones, `()`.

        peft adds it to a loss that the model itself computes, which neither an objective uses nor
        a trainer with a loss of its own, and which counts it once per micro-batch.
        """
        distances = []
        for name, factor in self.tuner.model.named_parameters():
            if name.endswith(FACTORS):
                wide = factor.to(torch.promote_types(factor.dtype, torch.float32))
                gram = wide @ wide.T if name.endswith(FACTORS[0]) else wide.T @ wide
                identity = torch.eye(gram.shape[0], device=gram.device, dtype=gram.dtype)
                distances.append(torch.linalg.matrix_norm(gram - identity))
        weight: float = self.config.orth_reg_weight
        return weight * torch.stack(distances).mean()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Keep peft from adding the penalty to what the model computes in a block."""
        weight = self.config.orth_reg_weight
        self.config.orth_reg_weight = 0.0
        try:
            yield
        finally:
            self.config.orth_reg_weight = weight

    def after_step(self, steps_done: int) -> None:
        """Take the importance of every rank from its gradients, and mask what the budget cuts."""
        allocator = self.tuner.rankallocator
        self.state.lend(allocator, self.config)
        self.tuner.update_and_allocate(steps_done)
        self.state.keep(allocator, self.config)


class _RankState(nn.Module):
    """What AdaLoRA remembers between steps, as buffers, so that checkpoints hold it.

    peft keeps it in plain attributes, which a resumed run would have lost.
    """

    def __init__(self, model: nn.Module) -> None:
        """Make room for every parameter of the adapter."""
        super().__init__()
        parameters = dict(model.named_parameters())
        self.names = tuple(sorted(name for name in parameters if name.endswith((*FACTORS, VALUES))))
        for i, name in enumerate(self.names):
            # The names hold dots, which a buffer's name may not.
            values = parameters[name].detach()
            self.register_buffer(f"sensitivity_{i}", torch.zeros_like(values))
            self.register_buffer(f"uncertainty_{i}", torch.zeros_like(values))
            if name.endswith(VALUES):
                ranks = torch.ones(values.shape[0], dtype=torch.bool, device=values.device)
                self.register_buffer(f"kept_{i}", ranks)
        self.register_buffer("is_allocated", torch.tensor(False))

    def kept(self) -> dict[str, Tensor]:
        """Return name of the singular values -> which of them are left, `(rank,)` bool."""
        return {
            name: self.get_buffer(f"kept_{i}")
            for i, name in enumerate(self.names)
            if name.endswith(VALUES)
        }

    def lend(self, allocator: Any, config: Any) -> None:
        """Give peft what it would have kept itself."""
        for i, name in enumerate(self.names):
            allocator.ipt[name] = self.get_buffer(f"sensitivity_{i}")  # overwritten, if present
            allocator.exp_avg_ipt[name] = self.get_buffer(f"sensitivity_{i}")
            allocator.exp_avg_unc[name] = self.get_buffer(f"uncertainty_{i}")
        if bool(self.get_buffer("is_allocated")):
            config.rank_pattern = {name: ranks.tolist() for name, ranks in self.kept().items()}

    def keep(self, allocator: Any, config: Any) -> None:
        """Take over what a step has changed."""
        for i, name in enumerate(self.names):
            if name in allocator.exp_avg_ipt:  # emptied by the last allocation
                self.get_buffer(f"sensitivity_{i}").copy_(allocator.exp_avg_ipt[name])
                self.get_buffer(f"uncertainty_{i}").copy_(allocator.exp_avg_unc[name])
        if config.rank_pattern:
            self.get_buffer("is_allocated").fill_(True)
            for name, ranks in self.kept().items():
                ranks.copy_(torch.tensor(config.rank_pattern[name]))

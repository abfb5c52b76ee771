"""A block around any delta: put in after it, saved beside it, and never folded in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltatune import parts, sites
from deltatune.blocks.block import Block, Surroundings
from deltatune.bridges.carrier import Carrier, Injection, Rhythm
from deltatune.bridges.delta_switch import adapters_off, are_adapters_off, original_weights
from deltatune.bridges.names import unwrapped
from deltatune.errors import InputError, NotMergeable
from deltatune.files import write_json_atomically
from deltatune.seeds import generator_for
from deltatune.sites import Sites

__all__ = ["BlockCarrier"]

NAME = "block"  # of the block in the model
TENSORS, RECORD = "block.safetensors", "block.json"
HOST = "delta"  # folder of the host's files
FORMAT = 1


class BlockCarrier:
    """Carries a delta and a block around it.

    Args:
        host: carries the delta.
        options: of the block.
        roles: of the recipe, for an architecture that deltatune does not know.
    """

    first_export = ""

    def __init__(self, host: Carrier, options: Any, roles: Mapping[str, str]) -> None:
        """Find the block's implementation."""
        self.host = host
        self.trains_base = host.trains_base
        self.options = options
        self.roles = roles
        self.implementation: type[Block] = parts.declaration_of(options, "blocks").implementation

    def prepare(self, base: nn.Module, injection: Injection) -> nn.Module:
        """Put the delta in, then the block around it.

        Raises:
            NotComposable: a model or delta that the block cannot act on.
        """
        model = self.host.prepare(base, injection)
        originals = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if self.trains_base and parameter.requires_grad
        }
        around = Surroundings(
            model=model,
            sites=injection.sites,
            changed=tuple(injection.selection),
            without_delta=self._without_delta(model, originals),
            is_delta_off=(lambda: False) if self.trains_base else are_adapters_off(model),
            task_type=injection.task_type,
        )
        self._put(around, generator_for(injection.seed, "block"))
        return model

    def _without_delta(
        self, model: nn.Module, originals: Mapping[str, Tensor]
    ) -> Callable[[], AbstractContextManager[Any]]:
        return original_weights(model, originals) if self.trains_base else adapters_off(model)

    def _put(
        self,
        around: Surroundings,
        generator: torch.Generator,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        block = self.implementation.made_for(self.options, around, generator)
        if state is not None:
            _load_state(block, state)
        block.around = around
        around.model.add_module(NAME, block.to(next(around.model.parameters()).device))
        block.install(around)

    def rhythm(self, model: nn.Module) -> Rhythm:
        """Ask what the delta asks, and what the block does."""
        asked, block = self.host.rhythm(model), _block(model)
        return Rhythm(
            auxiliary=(*asked.auxiliary, *([block.auxiliary] if block.adds_to_loss else [])),
            apart=asked.apart,
            begin=asked.begin,
            after_step=asked.after_step,
            may_rest=asked.may_rest | {f"{NAME}.{name}" for name in block.may_rest},
            reading=block.reading,
        )

    @contextlib.contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        """Switch delta and block off for the length of a block of code."""
        with self.host.disabled(model), _block(model).off():
            yield

    def figures(self, model: nn.Module, sites: Sites) -> Mapping[str, Any]:
        """Return what the delta records, and the block beside it."""
        own = _block(model).figures()
        return {**self.host.figures(model, sites), **({"block": dict(own)} if own else {})}

    def save(self, model: nn.Module, folder: Path, reload_base: Callable[[], nn.Module]) -> None:
        """Write the delta, and the block beside it."""
        block = _block(model)
        # Below, so that nobody who does not know of the block loads the delta without it.
        (folder / HOST).mkdir()
        with _without_block(model):
            self.host.save(model, folder / HOST, reload_base)
        tensors = {name: value.contiguous().cpu() for name, value in block.state_dict().items()}
        save_file(tensors, folder / TENSORS)
        record = {
            "format": FORMAT,
            "block": parts.to_plain(self.options, "blocks"),
            "changed": list(block.around.changed),
            "task_type": block.around.task_type,
        }
        write_json_atomically(folder / RECORD, record)

    def load(self, base: nn.Module, folder: Path) -> nn.Module:
        """Return the base with a saved delta and block.

        Raises:
            InputError: the block's files are missing or broken, or hold another block.
        """
        record, state = _read(folder)
        if record["block"] != parts.to_plain(self.options, "blocks"):
            raise InputError(
                f"{str(folder / RECORD)!r} is of another block than the recipe has: copy the whole "
                f"folder again from where it was written"
            )
        places = sites.of(base, roles=self.roles)
        before = {
            name: parameter.detach().clone()
            for name, parameter in base.named_parameters()
            if self.trains_base
        }
        model = self.host.load(base, folder / HOST)
        parameters = dict(model.named_parameters())
        originals = {n: v for n, v in before.items() if not torch.equal(v, parameters[n])}
        around = Surroundings(
            model=model,
            sites=places,
            changed=tuple(record["changed"]),
            without_delta=self._without_delta(model, originals),
            is_delta_off=(lambda: False) if self.trains_base else are_adapters_off(model),
            task_type=record["task_type"],
        )
        self._put(around, torch.Generator(), state)
        return model

    def merged(self, model: nn.Module) -> nn.Module:
        """Refuse.

        Raises:
            NotMergeable: always.
        """
        raise self._refused()

    def save_as_lora(self, model: nn.Module, folder: Path) -> None:
        """Refuse.

        Raises:
            NotMergeable: always.
        """
        raise self._refused()

    def _refused(self) -> NotMergeable:
        name = parts.declaration_of(self.options, "blocks").name
        return NotMergeable(
            f"the block {name} cannot be folded into the base, since "
            f"{self.implementation.why_no_change}: keep the run's folder and load it with "
            f"deltatune.load"
        )


def _block(model: nn.Module) -> Block:
    block = getattr(unwrapped(model)[0], NAME)
    if not isinstance(block, Block):
        raise TypeError(f"{type(block).__name__} is no block")
    return block


@contextlib.contextmanager
def _without_block(model: nn.Module) -> Iterator[None]:
    """Take the block out of the model's own modules, where a host writes all that it finds."""
    block = _block(model)
    delattr(model, NAME)
    try:
        yield
    finally:
        model.add_module(NAME, block)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        state = load_file(folder / TENSORS)
        wanted = ("block", "changed", "task_type")
        if not isinstance(record, dict) or any(key not in record for key in wanted):
            raise ValueError("a key is missing")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{str(folder)!r} holds no readable {RECORD} and {TENSORS} ({error}): copy the whole "
            f"folder again from where it was written"
        ) from error
    return record, state


def _load_state(block: Block, state: Mapping[str, Tensor]) -> None:
    own = block.state_dict()
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if shapes != given:
        raise InputError(
            f"{TENSORS} holds {given}, and the block on this base is {shapes}: load it on the base "
            f"that it was trained on"
        )
    block.load_state_dict(dict(state))

"""WeightDelta: base weight name -> its change. A fine-tuning as a value that can be added up."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deltatune import weight_delta_file
from deltatune.change_row import ChangeRow, change_row
from deltatune.checkpoints import open_state
from deltatune.errors import InputError, NotComposable, NotMergeable, unknown_name
from deltatune.lazy_tensors import Combination, Held, Joined, LazyTensors
from deltatune.weight_delta_application import add, put, targets_of
from deltatune.weight_difference import difference

if TYPE_CHECKING:
    from deltatune.bridges.peft_low_rank_form import LowRankForm
    from deltatune.sites import Sites

__all__ = ["WeightDelta"]


class WeightDelta(Mapping[str, Tensor]):
    """The change of a model: base weight name -> float32 tensor, stored in the base's orientation.

    A tensor is made when it is asked for and never kept, so that a delta of a large model needs the
    memory of one weight. A delta made from a model or from files reads them at that moment, and so
    follows what happens to them until it is saved. Its tensors are not to be changed in place.

    Deltas of one base add up: `a + b`, `a - b`, `0.5 * a`, `sum([a, b])`; where one of them has no
    change, it counts as 0. Apart from the changes, `replaced` holds tensors that have no base, such
    as a new head. They are no change: a positive factor leaves them as they are, a factor of 0 or
    below drops them, and of two that are added at most one may replace a tensor.

    Attributes:
        replaced: name -> tensor that is taken over whole, in its own dtype, as lazy as the changes.
    """

    def __init__(
        self, changes: Mapping[str, Tensor], *, replaced: Mapping[str, Tensor] | None = None
    ) -> None:
        """Wrap tensors; nothing is copied or made.

        Args:
            changes: base weight name -> its change, in the shape in which the base stores it.
            replaced: name -> tensor that has no base.

        Raises:
            InputError: a name is changed and replaced at once.
        """
        self._changes = Combination.of(changes)
        whole = replaced or {}
        self.replaced: LazyTensors = whole if isinstance(whole, LazyTensors) else Held(whole)
        for name in self.replaced:
            if name in self._changes:
                raise InputError(f"{name} is both changed and replaced: give it once")

    @classmethod
    def from_peft(
        cls,
        model: nn.Module,
        adapter_name: str = "default",
        *,
        base: nn.Module | Mapping[str, Tensor] | str | Path | None = None,
    ) -> WeightDelta:
        """Take the delta out of a peft model, under the names of the base without adapters.

        Each layer's change is what merging the adapter into a float64 copy of that layer does, so
        it is whole for every peft type that can merge; the model itself is not touched.

        Args:
            model: a `PeftModel`, unmerged.
            adapter_name: of the adapter.
            base: where the base weights lie; needed only if the adapter trained biases of the base
                in place (`bias="all"`), whose start the model no longer holds.

        Raises:
            InputError: no peft model, an unknown adapter, a merged one, or `base` is needed.
            NotMergeable: an adapter that is no change of weights, named with its type.
        """
        from deltatune.bridges.peft_delta_weight import changes_of

        state = None if base is None else open_state(base, "the base")
        return cls(changes_of(model, adapter_name, state))

    @classmethod
    def from_difference(
        cls,
        base: nn.Module | Mapping[str, Tensor] | str | Path,
        tuned: nn.Module | Mapping[str, Tensor] | str | Path,
        *,
        replaced: Collection[str] = (),
    ) -> WeightDelta:
        """Take the difference of two checkpoints of one model, tensor by tensor.

        Adding it to the base gives the tuned weight up to one rounding in float32.

        Args:
            base: model, state dict, safetensors file, index of a sharded one, or checkpoint folder.
            tuned: the same, after tuning.
            replaced: names or `*` patterns of tensors that are taken over whole from `tuned`, or
                left out where only `base` has them.

        Raises:
            InputError: the two do not belong together; names, shapes or dtypes say why.
        """
        changes, whole = difference(
            open_state(base, "the base"), open_state(tuned, "the tuned model"), replaced
        )
        return cls(changes, replaced=whole)

    @classmethod
    def load(cls, path: str | Path) -> WeightDelta:
        """Open a saved delta, or the folder that holds `delta.safetensors`.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        changes, replaced = weight_delta_file.read(path)
        return cls(changes, replaced=replaced)

    def save(self, path: str | Path) -> None:
        """Write the delta into one safetensors file, whole or not at all, tensor by tensor.

        Mostly zero changes are stored as indices and values. `load` gives every bit back.

        Raises:
            OSError: the file could not be written; the target is as it was.
        """
        weight_delta_file.write(Path(path), self, self.replaced)

    def __getitem__(self, name: str) -> Tensor:
        return self._changes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._changes

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def __repr__(self) -> str:
        return f"WeightDelta({len(self)} changes, {len(self.replaced)} replaced)"

    # Two deltas are equal only if they are one: comparing contents would make every tensor.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one change without making it."""
        return self._changes.shape(name)

    def rows(self) -> Iterator[ChangeRow]:
        """Give one row per change for tables, made one at a time."""
        for name in self:
            yield change_row(name, self[name])

    def __add__(self, other: object) -> WeightDelta:
        if not isinstance(other, WeightDelta):
            return NotImplemented
        twice = [name for name in self.replaced if name in other.replaced]
        if twice:
            raise NotComposable(
                f"both deltas replace {twice[0]} whole: build one without it, "
                f"as WeightDelta(dict(delta)), and add that"
            )
        changes = Combination([*self._changes.terms, *other._changes.terms])
        return WeightDelta(changes, replaced=Joined(self.replaced, other.replaced))

    def __radd__(self, other: object) -> WeightDelta:
        # sum() starts from the number 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: object) -> WeightDelta:
        return self + -other if isinstance(other, WeightDelta) else NotImplemented

    def __neg__(self) -> WeightDelta:
        return self * -1.0

    def __mul__(self, factor: object) -> WeightDelta:
        if not isinstance(factor, int | float):
            return NotImplemented
        kept = self.replaced if factor > 0 else {}
        return WeightDelta(self._changes.scaled(float(factor)), replaced=kept)

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> WeightDelta:
        if not isinstance(divisor, int | float):
            return NotImplemented
        if divisor == 0:
            raise InputError("divisor 0 is not allowed: give a finite number")
        return self * (1.0 / divisor)

    def to_peft(self, kind: str = "lora", *, rank: int, sites: Sites) -> LowRankForm:
        """Return the nearest plain peft adapter; nothing is written and no model touched.

        Exact, up to rounding in float32, where no change has a higher rank.

        Args:
            kind: of the adapter; `lora` is the one there is.
            rank: of the factors at most, from 1.
            sites: of the base (`deltatune.sites.of(model)`).

        Returns:
            Configuration, tensors, and the relative error of every weight.

        Raises:
            InputError: an unknown kind, or a rank below 1.
            NotMergeable: a change that such an adapter cannot hold, as of a norm or a new head.
        """
        from deltatune.bridges.peft_low_rank_form import low_rank_form

        if kind != "lora":
            raise unknown_name("kind of adapter", kind, ["lora"])
        if self.replaced:
            raise NotMergeable(
                f"{next(iter(self.replaced))} is replaced whole, which LoRA cannot hold: "
                f"convert WeightDelta(dict(delta)) and keep the replaced tensors apart"
            )
        return low_rank_form(self, sites, rank=rank)

    def add_to_(self, model: nn.Module) -> None:
        """Add the changes to a model in place, in float32 and cast once; put in what is replaced.

        Every name and shape is checked before the first weight moves.

        Args:
            model: the base, without adapters.

        Raises:
            InputError: the model lacks a name, or has another shape there.
            NotMergeable: a weight is quantised or has no values (device `meta`).
        """
        targets = targets_of(self._changes, model)
        replaced = targets_of(self.replaced, model)
        add(self._changes, targets, 1.0)
        put(self.replaced, replaced)

    def remove_from_(self, model: nn.Module) -> None:
        """Subtract the changes from a model in place, in float32 and cast once.

        This undoes `add_to_` up to rounding (in bfloat16 up to 2^-8 of a weight), and only if the
        delta does not read the model it was added to: save it first. Replaced tensors stay.
        `applied_to` restores every bit.

        Raises:
            InputError: the model lacks a name, or has another shape there.
            NotMergeable: a weight is quantised or has no values (device `meta`).
        """
        add(self._changes, targets_of(self._changes, model), -1.0)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        """Add the delta for the length of a block; afterwards the model is as before, bit by bit.

        The touched weights are kept as copies meanwhile, since subtracting would leave roundings.

        Raises:
            InputError: the model lacks a name, or has another shape there.
            NotMergeable: a weight is quantised or has no values (device `meta`).
        """
        targets = {**targets_of(self._changes, model), **targets_of(self.replaced, model)}
        originals = {name: tensor.detach().clone() for name, tensor in targets.items()}
        try:
            self.add_to_(model)
            yield model
        finally:
            put(originals, targets)

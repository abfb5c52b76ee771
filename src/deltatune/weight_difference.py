"""The difference of two checkpoints: which tensors belong together, and what changed."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor

from deltatune.checkpoints import State
from deltatune.errors import InputError, unknown_name
from deltatune.lazy_tensors import LazyTensors

__all__ = ["Difference", "Subset", "difference"]


class Difference(LazyTensors):
    """`tuned - base`, name by name, float32, made when asked for."""

    def __init__(self, base: State, tuned: State, names: Iterable[str]) -> None:
        """Subtract the tensors of these names."""
        self._base = base
        self._tuned = tuned
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tuned = self._tuned[name]
        base = self._base[name].to(tuned.device)
        # Half-precision values are exact in float32; double ones must not lose their difference.
        wide = torch.promote_types(tuned.dtype, torch.float32)
        return (tuned.to(wide) - base.to(wide)).to(torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._base.shape(name)


class Subset(LazyTensors):
    """Some tensors of a state."""

    def __init__(self, state: State, names: Iterable[str]) -> None:
        """Keep the given names."""
        self._state = state
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._state.shape(name)


def difference(
    base: State, tuned: State, replaced: Collection[str] = ()
) -> tuple[Difference, Subset]:
    """Pair the tensors of two states and return what changed and what was replaced whole.

    Args:
        base: before.
        tuned: after.
        replaced: names or `*` patterns of tensors that are not compared: taken over whole from
            `tuned`, or left out where only `base` has them.

    Raises:
        InputError: a tensor that only one side has, differs in shape, is stored in a dtype that
            cannot hold the other's values, or is tied in the base and untied in `tuned`; an
            integer tensor that changed; a name in `replaced` that matches nothing.
    """
    chosen = _matching(base, tuned, replaced)
    names = _in_both(base, tuned, chosen)
    _check_covered(base, tuned, {*chosen, *(base.same_tensor[name] for name in names)})
    _check_covered(tuned, base, {*chosen, *(tuned.same_tensor[name] for name in names)})
    changed = [name for name in names if _is_change(base, tuned, name)]
    return Difference(base, tuned, changed), Subset(tuned, [n for n in tuned if n in chosen])


def _matching(base: State, tuned: State, replaced: Collection[str]) -> set[str]:
    if isinstance(replaced, str):
        raise InputError(f"replaced={replaced!r} is one string: give a list of names or patterns")
    names = dict.fromkeys([*tuned, *base])
    chosen: set[str] = set()
    for pattern in replaced:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise unknown_name("tensor to replace", pattern, names)
        chosen.update(found)
    return chosen


def _in_both(base: State, tuned: State, chosen: Collection[str]) -> list[str]:
    """Name each tensor of the base once, by the first of its names that both sides have."""
    groups: dict[str, list[str]] = {}
    for name in base:
        if name in tuned and name not in chosen:
            groups.setdefault(base.same_tensor[name], []).append(name)
    for names in groups.values():
        _check_still_tied(tuned, names)
    return [names[0] for names in groups.values()]


def _check_still_tied(tuned: State, names: list[str]) -> None:
    first, *others = names
    for other in others:
        is_same = tuned.same_tensor[other] == tuned.same_tensor[first]
        if not is_same and not torch.equal(tuned[first], tuned[other]):
            raise InputError(
                f"{first} and {other} are one tied tensor in the base but differ in {tuned.label}: "
                f"untie them in the base, or name one of them in replaced"
            )


def _check_covered(state: State, other: State, covered: Collection[str]) -> None:
    # A tied tensor counts under any of its names: files hold only one of them.
    left = [n for n in state if n not in covered and state.same_tensor[n] not in covered]
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise InputError(
            f"{state.label} holds {shown}, which {other.label} lacks: give two checkpoints of one "
            f"model, or name what is new or left out in replaced"
        )


def _is_change(base: State, tuned: State, name: str) -> bool:
    """Check one pair; integer tensors are no change and must be equal."""
    before, after = base.shape(name), tuned.shape(name)
    if before != after:
        raise InputError(
            f"{name} has the shape {list(before)} in {base.label} and {list(after)} in "
            f"{tuned.label}: name it in replaced to take it over whole"
        )
    kinds = base.dtype(name), tuned.dtype(name)
    if all(kind.is_floating_point for kind in kinds):
        # A narrower copy differs from its base everywhere by rounding, which would pass for change.
        if torch.promote_types(*kinds) != kinds[1]:
            raise InputError(
                f"{name} is {kinds[0]} in {base.label} but {kinds[1]} in {tuned.label}, so that "
                f"rounding would count as change: give both in {kinds[0]}, or the base rounded too"
            )
        return True
    if kinds[0] != kinds[1] or not torch.equal(base[name].cpu(), tuned[name].cpu()):
        raise InputError(
            f"{name} holds {kinds[0]} in {base.label} and {kinds[1]} in {tuned.label}, and they "
            f"differ: only floats have a change; name it in replaced to take it over whole"
        )
    return False

"""Putting an adapter in leaves the base as it is, to the bit; what does not is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from deltatune.bridges.checksum import checksums
from deltatune.errors import NotComposable

__all__ = ["unedited"]


@contextmanager
def unedited(base: nn.Module, what: str) -> Iterator[None]:
    """Refuse a block that changes a value of a base model's parameters, or puts others in place.

    Some initialisations subtract their start from the base, so that the saved adapter is only right
    on a base that no longer exists. The parameter objects are followed, since an adapter gives them
    other names: each must still be in the model, with its bits.

    Args:
        base: before the block.
        what: acts in the block, for the message.

    Raises:
        NotComposable: with the names of the weights that changed.
    """
    parameters = dict(base.named_parameters())
    before = checksums(parameters)
    yield
    after = checksums(parameters)
    kept = {id(parameter) for parameter in base.parameters()}
    changed = [
        name
        for name, parameter in parameters.items()
        if id(parameter) not in kept or after.get(name) != before.get(name)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise NotComposable(
            f"{what} changes base weights ({', '.join(changed[:3])}{more}), so its adapter would "
            f"only be right on a base that is not the one given: choose a start that leaves the "
            f"base as it is"
        )

"""Which layers a selection is limited to."""

from __future__ import annotations

from collections.abc import Iterable

from deltatune.errors import InputError
from deltatune.sites import Site, Sites

__all__ = ["check_layers", "in_layers"]


def check_layers(layers: tuple[int, ...]) -> None:
    """Refuse a layer given twice or below 0."""
    if len(set(layers)) != len(layers) or any(layer < 0 for layer in layers):
        raise InputError(f"layers={list(layers)} is not allowed: give each layer once, from 0")


def in_layers(sites: Sites, places: Iterable[Site], layers: tuple[int, ...]) -> tuple[Site, ...]:
    """Return the places that lie in the given layers, all of them where none is given.

    Raises:
        InputError: the model has no such layer.
    """
    for layer in layers:
        if layer >= sites.number_of_layers:
            raise InputError(
                f"layers={list(layers)} is not allowed: this model has {sites.number_of_layers} "
                f"layers, counted from 0; leave {layer} out"
            )
    return tuple(place for place in places if not layers or place.layer in layers)

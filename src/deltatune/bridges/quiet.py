"""Keeping from the user what libraries print and nobody can act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging

__all__ = ["quiet"]

# Beginnings of warnings about what is meant to be so.
MEANT = (
    # peft 0.21 asks transformers for a property by its old name, whoever calls it.
    "`is_gradient_checkpointing` is deprecated",
    # Folding a change of the head alone unties it; loading must not tie it again.
    "Input and output embeddings are no longer tied after merging",
    # A head or embedding that is adapted is saved whole beside its adapter.
    "Setting `save_embedding_layers` to `True`",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no bars of libraries and none of the warnings in `MEANT`; also a decorator."""
    had_bars = logging.is_progress_bar_enabled()
    data_had_bars = not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for message in MEANT:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        if had_bars:
            logging.enable_progress_bar()
        if data_had_bars:
            datasets.enable_progress_bars()

"""Examples in, what a base can read out: encoded splits, and how batches are made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from rich.console import Console
from torch import Tensor
from transformers import BaseImageProcessor

from deltatune.base import Base
from deltatune.data.collating import Collator
from deltatune.data.encoding import Encoded, encode
from deltatune.data.image_encoding import ImageCollator, encode_images
from deltatune.data.loading import Examples
from deltatune.data.showing import show_example
from deltatune.data.tasks import TASKS
from deltatune.errors import InputError
from deltatune.notes import tell
from deltatune.settings import Training

__all__ = ["Collate", "inputs_of", "pixels_for"]

Collate = Collator | ImageCollator


def inputs_of(
    examples: Examples, base: Base, training: Training, console: Console
) -> tuple[Encoded, Collate]:
    """Encode examples, show what carries loss, and pass the supervision gate.

    Args:
        examples: of any task.
        base: loaded for this task.
        training: its `max_length` bounds sequences of tokens.
        console: where to show.

    Raises:
        InputError: the examples cannot be encoded, or the wrong things would be trained.
    """
    encoded, collate = _READERS[TASKS[examples.task].reads](examples, base, training, console)
    console.print(encoded.supervision.table())
    tell(console, encoded.supervision.notes)
    encoded.supervision.check()
    console.print("first example:", show_example(encoded, base.processor))
    return encoded, collate


def _tokens(
    examples: Examples, base: Base, training: Training, console: Console
) -> tuple[Encoded, Collate]:
    length = _length(training, base, console)
    return encode(examples, base.tokenizer, max_length=length), Collator(base.tokenizer)


def _length(training: Training, base: Base, console: Console) -> int:
    """Cut the asked length to what the model has positions for, and say so."""
    asked = training.max_length
    allowed = getattr(base.model.config, "max_position_embeddings", None) or asked
    if asked > allowed:
        console.print(f"max_length {asked} is cut to {allowed}, the positions that the model has")
    return min(asked, allowed)


def _images(
    examples: Examples, base: Base, training: Training, console: Console
) -> tuple[Encoded, Collate]:
    encoded = encode_images(examples)
    collate = pixels_for(base)
    first = {"image": encoded.splits["train"][0]["image"]}
    collate.positions = _positions(base, collate([first]))
    return encoded, collate


def pixels_for(base: Base) -> ImageCollator:
    """Return what makes batches of pixels for a base that reads images."""
    assert isinstance(base.processor, BaseImageProcessor), "the task reads images"
    channels = int(getattr(base.model.config, "num_channels", 3))
    return ImageCollator(base.processor, channels=channels, dtype=base.model.dtype)


def _positions(base: Base, batch: Mapping[str, Tensor]) -> int:
    """Return how many vectors the first layer gets of one image: patches, and what stands by."""
    pixels = batch["pixel_values"].to(base.model.device)
    try:
        with torch.no_grad():
            outputs = base.model(pixel_values=pixels, output_hidden_states=True)
    except (ValueError, RuntimeError) as error:  # how models refuse sizes and channels
        raise InputError(
            f"model {base.name!r} refuses images of {tuple(pixels.shape[1:])} (channels, height, "
            f"width): {' '.join(str(error).split())[:200].rstrip('.')}: check that its image "
            f"processor belongs to it"
        ) from error
    states = getattr(outputs, "hidden_states", None)
    if not states:
        return 1
    first = states[0]  # (1, positions, d_model), or (1, channels, height, width) of convolutions
    return int(first.shape[1] if first.ndim == 3 else first[0, 0].numel())


_Reader = Callable[[Examples, Base, Training, Console], tuple[Encoded, Collate]]
_READERS: dict[str, _Reader] = {"text": _tokens, "image": _images}

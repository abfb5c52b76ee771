"""What makes a model's inputs of examples: a tokenizer for text, an image processor for images."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedTokenizerBase,
)

from deltatune.data.images import check_pillow
from deltatune.data.tasks import TASKS
from deltatune.errors import InputError
from deltatune.guarded import guarded

__all__ = ["Processor", "load_processor"]

Processor = PreTrainedTokenizerBase | BaseImageProcessor
_CLASSES: dict[str, Any] = {"text": AutoTokenizer, "image": AutoImageProcessor}


def load_processor(place: str, config: Any, task: str, allow_remote_code: bool) -> Processor:
    """Load the processor of a model, after a look at whether it takes such inputs at all.

    Args:
        place: folder or Hugging Face name.
        config: of the model.
        task: a task of `deltatune.data`.
        allow_remote_code: whether code that comes with the model may run.

    Raises:
        InputError: a model of text for images or the other way round; no processor beside it.
    """
    reads = TASKS[task].reads
    if reads == "image":
        check_pillow()
    if _takes_images(config) != (reads == "image") and not hasattr(config, "auto_map"):
        other = "no images" if reads == "image" else "images"
        wanted = "such as ViT, Swin or ConvNeXt" if reads == "image" else "that reads text"
        raise InputError(
            f"model {place!r} ({config.model_type}) reads {other}, and the task of the data is "
            f"{task}: give a model {wanted}, or other data"
        )
    loaded: Processor = guarded(
        place,
        allow_remote_code,
        lambda **options: _CLASSES[reads].from_pretrained(place, **options),
    )
    return loaded


def _takes_images(config: Any) -> bool:
    return type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

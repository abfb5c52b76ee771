"""One encoded example in, its text out, with what carries loss marked."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.text import Text
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from deltatune.data import images
from deltatune.data.encoding import Encoded
from deltatune.data.tokens import IGNORED

__all__ = ["show_example"]

SUPERVISED_STYLE = "bold green"
OTHER_STYLE = "dim"


def show_example(
    encoded: Encoded,
    processor: PreTrainedTokenizerBase | BaseImageProcessor,
    *,
    split: str = "train",
    row: int = 0,
) -> Text:
    """Return the text of one example, special tokens included.

    What carries loss is green and stands between ⟦ and ⟧, so that it can also be told in a file.
    For a labelled task the label follows the text or what is known of the image.

    Args:
        encoded: from `encode`.
        processor: of the base; the same tokenizer as in `encode`.
        split: name of a split.
        row: index in that split, from 0.
    """
    example = encoded.splits[split][row]
    labels = example["labels"]
    if not isinstance(processor, PreTrainedTokenizerBase):
        return _labelled(images.shown(example["image"]), labels, encoded)
    if not isinstance(labels, list):
        return _labelled(_decoded(processor, example["input_ids"]), labels, encoded)
    shown = Text()
    pairs = zip(example["input_ids"], labels, strict=True)
    for is_ignored, run in groupby(pairs, key=lambda pair: pair[1] == IGNORED):
        text = _decoded(processor, [token for token, _ in run])
        if is_ignored:
            shown.append(text, OTHER_STYLE)
        else:
            shown.append(f"⟦{text}⟧", SUPERVISED_STYLE)
    return shown


def _labelled(text: str, label: Any, encoded: Encoded) -> Text:
    answer = encoded.label_names[label] if encoded.label_names else f"{label:g}"
    return Text().append(text, OTHER_STYLE).append(f" ⟦{answer}⟧", SUPERVISED_STYLE)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

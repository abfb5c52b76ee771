"""One encoded example in, its text out, with what carries loss marked."""

from __future__ import annotations

from itertools import groupby

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from deltatune.data.encoding import Encoded
from deltatune.data.tokens import IGNORED

__all__ = ["show_example"]

SUPERVISED_STYLE = "bold green"
OTHER_STYLE = "dim"


def show_example(
    encoded: Encoded, tokenizer: PreTrainedTokenizerBase, *, split: str = "train", row: int = 0
) -> Text:
    """Return the text of one example, special tokens included.

    What carries loss is green and stands between ⟦ and ⟧, so that it can also be told in a file.
    For a labelled task the label follows the text.

    Args:
        encoded: from `encode`.
        tokenizer: the same as in `encode`.
        split: name of a split.
        row: index in that split, from 0.
    """
    example = encoded.splits[split][row]
    ids, labels = example["input_ids"], example["labels"]
    shown = Text()
    if not isinstance(labels, list):
        shown.append(str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)), OTHER_STYLE)
        answer = encoded.label_names[labels] if encoded.label_names else f"{labels:g}"
        return shown.append(f" ⟦{answer}⟧", SUPERVISED_STYLE)
    pairs = zip(ids, labels, strict=True)
    for is_ignored, run in groupby(pairs, key=lambda pair: pair[1] == IGNORED):
        text = str(
            tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False)
        )
        if is_ignored:
            shown.append(text, OTHER_STYLE)
        else:
            shown.append(f"⟦{text}⟧", SUPERVISED_STYLE)
    return shown

"""Images in, batches of pixels out; until a batch is made they stay the files that they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import torch
from torch import Tensor
from transformers import BaseImageProcessor

from deltatune.data.encoding import Encoded
from deltatune.data.images import opened
from deltatune.data.loading import Examples
from deltatune.data.supervision import SplitSupervision, Supervision
from deltatune.data.tallying import missing_labels
from deltatune.errors import InputError

__all__ = ["ImageCollator", "encode_images"]


def encode_images(examples: Examples) -> Encoded:
    """Put images and labels under the names that a model reads; nothing is opened.

    Args:
        examples: of the task `image_classification`, from `loading.load`.
    """
    roles = examples.columns
    counts = {split: _counted(rows, examples) for split, rows in examples.splits.items()}
    never = {
        split: missing_labels(counts["train"].labels, counts[split].labels) for split in counts
    }
    notes = tuple(
        f"{split} never shows {', '.join(map(repr, labels))}"
        for split, labels in never.items()
        if labels
    )
    splits = {}
    for split, rows in examples.splits.items():
        table = rows.with_format("arrow")[:]
        columns = {"image": table.column(roles["image"]), "labels": table.column(roles["label"])}
        mark = f"{examples.fingerprint[:12]}{split}images"
        splits[split] = datasets.Dataset(pa.table(columns), fingerprint=mark)
    return Encoded(
        task=examples.task,
        splits=splits,
        supervision=Supervision(
            task=examples.task, max_length=0, splits=counts, notes=(*examples.notes, *notes)
        ),
        label_names=examples.label_names,
    )


def _counted(rows: datasets.Dataset, examples: Examples) -> SplitSupervision:
    found = Counter(rows.with_format("arrow")[:].column(examples.columns["label"]).to_pylist())
    names = examples.label_names
    labels = {name: found.get(label, 0) for label, name in enumerate(names)}
    return SplitSupervision(examples=rows.num_rows, tokens=0, labels=labels)


class ImageCollator:
    """Opens the images of a batch and makes pixels of them.

    Args:
        processor: of the base: scales, crops and normalizes as the base was pre-trained.
        channels: of the model, 1 or 3; grey and coloured images are made alike.
        dtype: of the model's weights.
        positions: vectors that the model makes of one image; what counts as its tokens.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        *,
        channels: int,
        dtype: torch.dtype = torch.float32,
        positions: int = 1,
    ) -> None:
        """Keep what is needed for one batch."""
        self.processor = processor
        self.channels = channels
        self.dtype = dtype
        self.positions = positions

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make one batch.

        Args:
            features: rows of `Encoded.splits` with `image`, and `labels` where there are any.

        Returns:
            `pixel_values` (batch, channels, height, width), `labels` (batch,) int64.

        Raises:
            InputError: an image is broken, or the processor leaves images of different sizes.
        """
        pictures = [opened(feature["image"], self.channels) for feature in features]
        try:
            pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        except ValueError as error:
            raise InputError(
                f"the base's image processor {type(self.processor).__name__} refuses these images: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        batch = {"pixel_values": pixels.to(self.dtype)}
        if "labels" in features[0]:
            labels = [feature["labels"] for feature in features]
            batch["labels"] = torch.tensor(labels, dtype=torch.int64)
        return batch

    def lengths(self, examples: Any) -> list[int]:
        """Return the positions of every image: all the same."""
        return [self.positions] * len(examples)

    def tokens_in(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the positions of a batch, twice, since no image is padded."""
        positions = len(batch["pixel_values"]) * self.positions
        return positions, positions

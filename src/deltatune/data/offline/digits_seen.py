"""What `nano-vit` already knows: the digits 0 to 4, half of them as its own training saw them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import datasets
from torch import Tensor

from deltatune.data.offline.digit_scans import HELD_OUT, dataset, dealt, held_out
from deltatune.data.offline.offline_task import Level, OfflineTask

__all__ = ["DIGITS", "TASK", "digits_seen"]

DIGITS = range(5)


def digits_seen(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    """Build the forgetting set of `nano-vit`: its test split holds scans that it never saw.

    Training and validation come from the scans that it was pre-trained on.

    Args:
        sizes: split -> number of examples.
        seed: of the choice and the order; which scans are held out does not depend on it.
        difficulty: 1.

    Returns:
        Splits with the columns `image`, `label` (class 0 is the digit 0) and `scan`.

    Raises:
        InputError: more examples than there are scans, or scikit-learn is not installed.
    """
    seen, unseen = zip(*map(held_out, DIGITS), strict=True)
    pools = {"train": seen, "validation": seen, "test": unseen}
    chosen = dealt(sizes, pools, seed, TASK.name)
    return datasets.DatasetDict(
        {split: dataset(numbers, DIGITS, _as_scanned) for split, numbers in chosen.items()}
    )


def _as_scanned(scan: Tensor, number: int) -> Tensor:
    return scan


TASK = OfflineTask(
    name="digits-0-4",
    title="Tell the handwritten digits 0 to 4 apart, which nano-vit was pre-trained on",
    kind="image_classification",
    base="deltatune/nano-vit",
    metric="accuracy",
    levels=(Level(what="as scanned", chance=0.2),),
    difficulty=1,
    sizes=MappingProxyType(
        {"train": 500, "validation": 90, "test": HELD_OUT * len(DIGITS)},
    ),
    columns=MappingProxyType({"image": "image", "label": "label"}),
    build=digits_seen,
    is_pretraining=True,
)

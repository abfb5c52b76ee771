"""Does this docstring belong to this function? Built from Python's own standard library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import datasets
import torch

from deltatune.data.offline.docstring_pairs import (
    LABELS,
    Pairing,
    Row,
    alike_pairs,
    pairs_at_random,
    rows_of_module,
    told_apart,
)
from deltatune.data.offline.documented_functions import (
    Function,
    documented_functions,
    package_of,
    words,
)
from deltatune.data.offline.standard_library import check_enough, library_folder
from deltatune.errors import InputError
from deltatune.seeds import generator_for, seed_for, shuffled

__all__ = ["docstring_matching", "word_overlap_accuracy"]

LARGEST_SHARE = 10  # one package fills at most this part (a tenth) of a split
EASIEST, HARDEST = 1, 3
SPARE = 16  # rows beside a quarter of the size: not every function finds an unrelated docstring


def docstring_matching(
    *,
    seed: int = 0,
    train: int = 2500,
    validation: int = 300,
    test: int = 600,
    difficulty: int = HARDEST,
) -> datasets.DatasetDict:
    """Build the task from the sources of the running Python; they are parsed, never executed.

    Half of the examples pair a function with its own docstring ("match"), half with the docstring
    of another function of the same module ("other"): two functions alike in name, wording and
    length swap their docstrings. A function and a docstring each occur once, so neither tells
    anything alone, and chance is 0.5. Functions keep their signature, as a reader would see them,
    so shared words tell something: `word_overlap_accuracy` says how much. This is difficulty 3: at
    2 any two functions of a module swap, at 1 the other docstring is of another module and shares
    no word with the function.

    An encoder learns this. Runs of `nano`, which reads from left to right only, were stopped by the
    divergence guard in five tries of five, between steps 61 and 71, so whether it would have
    learned this later is not known; it has a form of its own in `docstring_choice`.

    Whole packages go to one split, chosen by a hash of seed and package name. The result is the
    same wherever Python's version and `seed` are.

    Args:
        seed: of the splits, of the choice of functions and of the order.
        train: number of training examples.
        validation: number of validation examples.
        test: number of test examples.
        difficulty: 1 to 3.

    Returns:
        Splits "train", "validation" and "test" with the columns `function`, `docstring`, `label`
        (0 = other, 1 = match) and `module`.

    Raises:
        InputError: a size below 2, or more examples than the standard library has.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for split, size in sizes.items():
        if size < 2:
            raise InputError(f"{split}={size} is not allowed: give at least 2 examples")
    if difficulty not in range(EASIEST, HARDEST + 1):
        raise InputError(f"difficulty={difficulty} is not allowed: give {EASIEST} to {HARDEST}")
    return _build(sizes, seed, difficulty)


def word_overlap_accuracy(dataset: datasets.DatasetDict) -> float:
    """Return the test accuracy of counting words, the baseline that a trained model has to beat.

    The score of an example is the share of the docstring's words that the function's text holds;
    the threshold is the one that is best on the training split.

    Args:
        dataset: what `docstring_matching` returned.
    """
    scores, labels = _overlaps(dataset["train"])
    thresholds = torch.tensor(sorted(set(scores.tolist())), dtype=scores.dtype)  # (thresholds,)
    correct = ((scores >= thresholds[:, None]) == labels).sum(dim=1)  # (thresholds,)
    threshold = thresholds[correct.tolist().index(int(correct.max()))]  # of equals the lowest
    scores, labels = _overlaps(dataset["test"])
    return float(((scores >= threshold) == labels).double().mean())


def _overlaps(split: datasets.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return overlap scores and whether the label is "match", both `(examples,)`."""
    scores = []
    for docstring, function in zip(split["docstring"], split["function"], strict=True):
        wanted = words(docstring)
        scores.append(len(wanted & words(function)) / max(1, len(wanted)))
    labels = torch.tensor(split["label"][:]) == LABELS.index("match")
    return torch.tensor(scores, dtype=torch.float64), labels


def _build(sizes: Mapping[str, int], seed: int, difficulty: int) -> datasets.DatasetDict:
    pairing = alike_pairs if difficulty == HARDEST else pairs_at_random
    packages = _packages(documented_functions(library_folder()), seed, pairing)
    waiting = sorted(packages, key=lambda package: seed_for(seed, package))
    splits = {}
    for split in ("test", "validation", "train"):  # train takes what is left
        spare = SPARE + sizes[split] // 4 if difficulty == EASIEST else 0
        rows = _take(sizes[split] + spare, waiting, packages)
        if difficulty == EASIEST:
            rows = told_apart(rows)[: sizes[split]]
        check_enough(split, sizes[split], len(rows), "examples beside the other splits")
        splits[split] = shuffled(rows, generator_for(seed, f"docstring_matching order {split}"))
    return datasets.DatasetDict({split: _dataset(splits[split]) for split in sizes})


def _packages(functions: Iterable[Function], seed: int, pairing: Pairing) -> dict[str, list[Row]]:
    """Return package -> its rows."""
    modules: dict[str, list[Function]] = {}
    for function in functions:
        modules.setdefault(function.module, []).append(function)
    packages: dict[str, list[Row]] = {}
    for module, members in modules.items():
        rows = rows_of_module(members, seed, pairing)
        packages.setdefault(package_of(module), []).extend(rows)
    return packages


def _take(size: int, waiting: list[str], packages: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Use up packages until there are `size` rows.

    No split shall be about one package, so each gives at most a tenth; the rest of it is lost,
    since it may serve no other split: packages without such a rest come first.
    """
    rows: list[Row] = []
    most = max(4, size // LARGEST_SHARE // 4 * 4)  # whole groups of four
    for package in sorted(waiting, key=lambda package: len(packages[package]) > most):
        if len(rows) < size:
            waiting.remove(package)
            rows.extend(packages[package][:most])
    return rows[:size]


def _dataset(rows: Sequence[Row]) -> datasets.Dataset:
    functions, docstrings, labels, modules = zip(*rows, strict=True)
    columns = {"function": functions, "docstring": docstrings, "label": labels, "module": modules}
    text = datasets.Value("string")
    label = datasets.ClassLabel(names=list(LABELS))
    features = datasets.Features(  # type: ignore[no-untyped-call]
        function=text, docstring=text, label=label, module=text
    )
    return datasets.Dataset.from_dict(columns, features=features)

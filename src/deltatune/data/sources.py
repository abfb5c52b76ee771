"""What the user calls the data (a path, a name, an object) in, named splits out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from huggingface_hub.errors import HfHubHTTPError

from deltatune import hub, packaged_bases
from deltatune.data import image_folders, images, reading
from deltatune.data.offline import known_tasks
from deltatune.data.yardstick import Yardstick
from deltatune.errors import InputError, nearest_first

__all__ = ["SPLIT_NAMES", "Source", "open_source"]

# our name -> what others call the same part, the usual name first
SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.+-]+)?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Splits as they were found, before columns are chosen.

    Args:
        name: what the user gave, for the record.
        splits: "train", and "validation" and "test" where they exist.
        notes: what was left out or renamed.
        task: what the maker of the data says it is; None if nobody does.
        columns: column role -> column name, with `task`.
        yardstick: how answers are judged, with `task`.
    """

    name: str
    splits: dict[str, datasets.Dataset]
    notes: tuple[str, ...] = ()
    task: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    yardstick: Yardstick | None = None


def open_source(source: Any) -> Source:
    """Open a path, a Hugging Face name, an offline task (`deltatune/NAME`) or a Python object.

    Args:
        source: a file, a folder with `train.*` (and `validation.*`, `test.*`), a folder of images
            (see `image_folders`), a folder written by `datasets`, a Hugging Face name (`owner/name`
            or `owner/name:configuration`), a `datasets.Dataset` or `DatasetDict`, a list of
            mappings, or a mapping of split names to those.

    Raises:
        InputError: nothing readable is there.
    """
    if known_tasks.is_offline(source):
        return _open_offline(source)
    if isinstance(source, str | Path):
        return _open_named(source)
    if isinstance(source, Mapping):
        parts = {name: _dataset(rows, f"split {name!r}") for name, rows in source.items()}
        return _named_splits(f"{type(source).__name__} of {', '.join(parts)}", parts)
    rows = _dataset(source, "the data")
    return Source(name=f"{type(source).__name__} of {rows.num_rows} rows", splits={"train": rows})


def _dataset(rows: Any, where: str) -> datasets.Dataset:
    if isinstance(rows, datasets.Dataset):
        found = rows
    elif isinstance(rows, list | tuple) and all(isinstance(row, Mapping) for row in rows):
        places = [f"row {number}" for number in range(1, len(rows) + 1)]
        stored = images.with_stored_images(rows)
        found = datasets.Dataset(reading.table_of(stored, where, places))
    else:
        raise InputError(
            f"{where} is a {type(rows).__name__}, which cannot be read: give a path, a Hugging "
            "Face name, a datasets.Dataset or DatasetDict, or a list of dicts"
        )
    if found.num_rows == 0:
        raise InputError(f"{where} holds no rows: give at least one")
    return found


def _open_offline(name: str) -> Source:
    packaged_bases.refuse_as_data(name)
    task, options = known_tasks.named(name)
    splits = dict(task.load(**options))
    level = task.level(options.get("difficulty", 0))
    yardstick = Yardstick(
        metric=task.metric,
        score=task.score,
        rows=splits,
        answer_tokens=task.answer_tokens,
        chance=level.chance,
        ceiling=level.ceiling,
    )
    return Source(
        name=name, splits=splits, task=task.kind, columns=task.columns, yardstick=yardstick
    )


def _open_named(source: str | Path) -> Source:
    path = Path(source).expanduser()
    name = str(source)
    if os.path.isdir(path):  # pathlib fails on what is too long for a name
        return _open_folder(path, name)
    if os.path.exists(path):
        return Source(name=name, splits={"train": datasets.Dataset(reading.read_file(path))})
    if path.suffix.lower() in reading.RUNS_CODE:
        reading.check_readable(path)
    is_hub_name = isinstance(source, str) and HUB_NAME.fullmatch(source) is not None
    if not is_hub_name or path.suffix.lower() in reading.READABLE_SUFFIXES:
        reading.existing(path)
    return _open_hub(name, path)


def _open_folder(path: Path, name: str) -> Source:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _open_saved(path, name)
    found: dict[str, list[Path]] = {}
    folders = [path, path / "data"]  # a snapshot of a Hugging Face data set keeps its files in data
    for file in sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir()):
        split = _split_of(file)
        if split is not None:
            found.setdefault(split, []).append(file)
    if "train" not in found and image_folders.are_in(path):
        tables = image_folders.read(path)
        return _named_splits(name, {part: datasets.Dataset(t) for part, t in tables.items()})
    if "train" not in found:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise InputError(
            f"folder {path} has no train file: name one train.jsonl (or "
            f"{', '.join(reading.READABLE_SUFFIXES[1:])}), or give one file; it holds {names}"
        )
    splits = {split: _joined(path, found[split]) for split in SPLIT_NAMES if split in found}
    return Source(name=name, splits=splits)


def _split_of(file: Path) -> str | None:
    if not file.is_file() or file.suffix.lower() not in reading.READABLE_SUFFIXES:
        return None
    stem = re.sub(r"-\d+-of-\d+(-\w+)?$|[-_.]\d+$", "", file.stem.lower())  # shards of one split
    return next((split for split, names in SPLIT_NAMES.items() if stem in names), None)


def _joined(folder: Path, files: list[Path]) -> datasets.Dataset:
    suffixes = sorted({file.suffix.lower() for file in files})
    names = {re.sub(r"\d", "", file.stem) for file in files}
    if len(suffixes) > 1 or len(names) > 1:
        listed = ", ".join(file.name for file in files)
        raise InputError(f"folder {folder} has one split more than once ({listed}): keep one")
    tables = [reading.read_file(file) for file in files]
    try:
        return datasets.Dataset(pa.concat_tables(tables, promote_options="permissive"))
    except pa.ArrowException as error:
        listed = ", ".join(file.name for file in files)
        reason = " ".join(str(error).split())
        raise InputError(f"folder {folder}: {listed} do not fit together: {reason}") from error


def _open_saved(path: Path, name: str) -> Source:
    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"folder {path} is not a complete saved data set: {reason}") from error
    if isinstance(saved, datasets.DatasetDict):
        return _named_splits(name, {str(key): part for key, part in saved.items()})
    return Source(name=name, splits={"train": _dataset(saved, str(path))})


def _named_splits(name: str, parts: Mapping[str, datasets.Dataset]) -> Source:
    """Give splits our names; `train_sft` counts as train if no other part is like it."""
    splits: dict[str, datasets.Dataset] = {}
    used: set[str] = set()
    for split, names in SPLIT_NAMES.items():
        exact = [given for given in names if given in parts]
        alike = [given for given in parts if str(given).lower().startswith(names)]
        chosen = exact[:1] or (alike if len(alike) == 1 else [])
        for given in chosen:
            splits[split] = _dataset(parts[given], f"split {given!r} of {name}")
            used.add(given)
    if "train" not in splits:
        raise InputError(
            f"{name} has no split named train; it has {', '.join(map(str, parts)) or 'none'}: "
            'give the splits as {"train": ..., "test": ...}'
        )
    unused = [str(given) for given in parts if given not in used]
    notes = (f"splits not used: {', '.join(unused)}",) if unused else ()
    return Source(name=name, splits=splits, notes=notes)


def _open_hub(name: str, path: Path) -> Source:
    folder = path.parent if path.parent.is_dir() else Path()
    nearest = nearest_first(path.name, (entry.name for entry in folder.iterdir()))[:3]
    hint = f" (nearest here: {', '.join(nearest)})" if nearest else ""
    refusal = (
        f"{name!r} is neither a file or folder here{hint} nor a reachable Hugging Face data set"
    )
    repository, _, configuration = name.partition(":")
    if not _is_cached(repository) and not datasets.config.HF_HUB_OFFLINE:
        hub.check_reachable(f"datasets/{repository}", refusal)
    try:
        loaded = datasets.load_dataset(repository, configuration or None)
    except (OSError, RuntimeError, ValueError, HfHubHTTPError) as error:
        raise InputError(f"{refusal}: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        raise InputError(f"{name!r} did not load as named splits but as {type(loaded).__name__}")
    return _named_splits(name, {str(key): part for key, part in loaded.items()})


def _is_cached(repository: str) -> bool:
    return (Path(datasets.config.HF_DATASETS_CACHE) / repository.replace("/", "___")).is_dir()

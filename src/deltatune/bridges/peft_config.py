"""The configuration of an adapter of ours: which delta, at which places, fully resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig

from deltatune import parts
from deltatune.bridges.peft_type import DELTA
from deltatune.errors import InputError
from deltatune.part import Columns, Entries, Part, Rows, Selection, Whole
from deltatune.sites import Site, Sites, split

__all__ = ["DeltaConfig", "Place", "delta_config", "part_of", "places_by_module"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One delta of an adapter.

    Args:
        site: name of the place.
        module: path of its module in the base model.
        role: of the place.
        rows: half-open ranges of the weight's outputs; None for all of them.
        part: what of the place may change, counted within it; None for all of it.
        transposed: whether the weight is stored `(in, out)`.
    """

    site: str
    module: str
    role: str
    rows: list[list[int]] | None = None
    part: dict[str, Any] | None = None
    transposed: bool = False

    @property
    def name(self) -> str:
        """The name that messages show."""
        return self.site

    def row_indices(self) -> torch.Tensor | None:
        """Return the rows, `(rows,)` int64, or None for all."""
        return None if self.rows is None else Rows.of_ranges([(a, b) for a, b in self.rows]).indices


@dataclass
class DeltaConfig(PeftConfig):
    """Configuration of the peft type `DELTA`.

    Args:
        delta: options of the delta, as `deltatune.parts.to_plain` writes them.
        places: one mapping per delta, see `Place`.
        target_modules: full paths of the changed modules; follows from `places`.
        modules_to_save: modules that train whole beside the delta.
        seed: of start values.
    """

    delta: dict[str, Any] = field(default_factory=dict)
    places: list[dict[str, Any]] = field(default_factory=list)
    target_modules: list[str] | None = None
    exclude_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options and derive the modules.

        Raises:
            InputError: an unknown delta, option or place key.
        """
        super().__post_init__()
        self.peft_type = DELTA
        self.options = parts.from_plain(self.delta, "deltas", where="delta") if self.delta else None
        resolved = [parts.validated(Place, place, "places") for place in self.places]
        self.target_modules = list(dict.fromkeys(place.module for place in resolved))
        # Chosen entries are too many for JSON: they travel as buffers beside the weights.
        self.chosen: dict[str, Part] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        plain: dict[str, Any] = super().to_dict()
        for name in ("options", "chosen"):
            plain.pop(name, None)
        return plain


def places_by_module(config: DeltaConfig) -> Mapping[str, list[Place]]:
    """Return module path -> its places."""
    found: dict[str, list[Place]] = {}
    for plain in config.places:
        place = Place(**plain)
        found.setdefault(place.module, []).append(place)
    return found


def delta_config(
    options: Any,
    sites: Sites,
    selection: Selection,
    *,
    modules_to_save: Sequence[str] = (),
    seed: int = 0,
    task_type: str | None = None,
) -> DeltaConfig:
    """Resolve a delta and a selection into a configuration that needs no model to be read again.

    Args:
        options: of a declared delta.
        sites: of the base.
        selection: weight name -> part.
        modules_to_save: modules that train whole beside the delta.
        seed: of start values.
        task_type: peft's name of the task.
    """
    found = [
        pair for weight, chosen in selection.items() for pair in split(sites, weight, chosen)
    ]
    config = DeltaConfig(
        task_type=task_type,
        delta=parts.to_plain(options, "deltas"),
        places=[_plain(site, part) for site, part in found],
        modules_to_save=list(modules_to_save) or None,
        seed=seed,
    )
    config.chosen = {site.name: part for site, part in found if isinstance(part, Entries)}
    return config


def _plain(site: Site, part: Part) -> dict[str, Any]:
    rows = None if site.part == Whole() else _ranges(site.part.indices)  # type: ignore[union-attr]
    return {
        "site": site.name,
        "module": site.module,
        "role": site.role,
        "rows": rows,
        "part": _plain_part(part),
        "transposed": site.transposed,
    }


def _ranges(indices: torch.Tensor) -> list[list[int]]:
    """Write rows as half-open ranges, in their order."""
    ranges: list[list[int]] = []
    for row in indices.tolist():
        if ranges and ranges[-1][1] == row:
            ranges[-1][1] = row + 1
        else:
            ranges.append([row, row + 1])
    return ranges


def _plain_part(part: Part) -> dict[str, Any] | None:
    if isinstance(part, Whole):
        return None
    if isinstance(part, Entries):
        return {"entries": part.indices.numel()}
    kind = "rows" if isinstance(part, Rows) else "columns"
    return {kind: part.indices.tolist()}


def part_of(config: DeltaConfig, place: Place) -> Part:
    """Return what of a place may change; entries of a loaded adapter stand in until its buffers come.

    Raises:
        InputError: an unknown kind of part.
    """
    if place.part is None:
        return Whole()
    kind, value = next(iter(place.part.items()))
    if kind == "entries":
        return config.chosen.get(place.site, Entries(torch.arange(int(value))))
    kinds: dict[str, type[Rows] | type[Columns]] = {"rows": Rows, "columns": Columns}
    if kind not in kinds:
        raise InputError(f"the adapter's part {kind!r} is not known: it has rows, columns or entries")
    return kinds[kind](torch.tensor(value, dtype=torch.int64))

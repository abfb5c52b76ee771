"""The configuration of an adapter of ours: which delta, at which places, fully resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from peft import PeftConfig
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import Tensor

from deltatune import parts
from deltatune.bridges.peft_place import Place, place_of
from deltatune.bridges.peft_type import DELTA
from deltatune.errors import InputError, NotComposable, unknown_name
from deltatune.part import Entries, Part, Selection, Whole
from deltatune.sites import Site, Sites, split

__all__ = ["DeltaConfig", "delta_config"]


@dataclass
class DeltaConfig(PeftConfig):
    """Configuration of the peft type `DELTA`; make one with `delta_config`.

    Args:
        delta: options of the delta, as `deltatune.parts.to_plain` writes them.
        places: one mapping per delta, see `Place`.
        modules_to_save: modules that train whole beside the delta.
        seed: of start values.
        base: record of the base, see `deltatune.base_record`; made when the adapter is put in.

    Attributes:
        options: the delta's options.
        places_of: module path -> its places.
        target_modules: the full module paths, for peft's own tools; `places_of` is what counts.
        entries: site -> chosen single entries, `(k,)` int64. They are tensors of the adapter, so a
            configuration read from a file has none until the adapter's tensors are loaded.
        awaits_tensors: whether it was read from a file and the adapter's tensors are not loaded, or
            its start is yet to be measured.
    """

    delta: dict[str, Any] = field(default_factory=dict)
    places: list[dict[str, Any]] = field(default_factory=list)
    modules_to_save: list[str] | None = None
    seed: int = 0
    base: dict[str, Any] = field(default_factory=dict)

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        """Refuse unknown fields, which peft would drop with a warning.

        Raises:
            InputError: nearest names first.
        """
        known = [entry.name for entry in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                raise unknown_name("adapter_config.json: key", key, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check the options and the places.

        Raises:
            InputError: an unknown delta, option or place key, two deltas at one place, or a place
                that the delta cannot change.
        """
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = DELTA
        if not self.delta or not self.places:
            raise InputError(
                "a DELTA adapter needs a delta and places: make its config with delta_config"
            )
        self.options = parts.from_plain(self.delta, "deltas", where="delta")
        resolved = [
            parts.validated(Place, plain, f"places[{i}]") for i, plain in enumerate(self.places)
        ]
        self.places_of = _by_module(resolved)
        # For peft's own tools only. It saves all of an embedding or head that is named here.
        self.target_modules = self.places_of.keys() - set(EMBEDDING_LAYER_NAMES)
        self.entries: Mapping[str, Tensor] = {}
        self.awaits_tensors = True
        implementation = parts.declaration_of(self.options, "deltas").implementation
        for place in resolved:
            _refuse_saved(place, self.modules_to_save or ())
            implementation.check(self.options, *place.cut_shape, place.part_of_cut(), place.site)

    def with_entries(self, entries: Mapping[str, Tensor]) -> Self:
        """Give the chosen entries of a new adapter, to every place that needs some; return self."""
        self.entries = entries
        implementation = parts.declaration_of(self.options, "deltas").implementation
        self.awaits_tensors = bool(implementation.needed(self.options))
        return self


def _by_module(places: Iterable[Place]) -> Mapping[str, tuple[Place, ...]]:
    found: dict[str, tuple[Place, ...]] = {}
    for place in places:
        present = found.get(place.module, ())
        if any(other.role == place.role for other in present):
            raise InputError(f"two deltas at {place.site}: select it once, and use a sum for both")
        found[place.module] = (*present, place)
    return found


def _refuse_saved(place: Place, modules_to_save: Sequence[str]) -> None:
    for saved in modules_to_save:
        if f".{saved}." in f".{place.module}.":
            raise NotComposable(
                f"{place.module} is selected for the delta and lies in {saved!r}, which trains "
                f"whole: take it out of the selection or of modules_to_save"
            )


def delta_config(
    options: Any,
    sites: Sites,
    selection: Selection,
    *,
    modules_to_save: Sequence[str] = (),
    seed: int = 0,
    task_type: str | None = None,
) -> DeltaConfig:
    """Resolve a delta and a selection into a configuration that loads without resolving sites.

    Args:
        options: of a declared delta.
        sites: of the base.
        selection: weight name -> part.
        modules_to_save: modules that train whole beside the delta.
        seed: of start values.
        task_type: peft's name of the task.

    Raises:
        InputError: a weight that is no linear layer's, an empty selection, or a place that the
            delta cannot change.
    """
    places: list[Place] = []
    entries: dict[str, Tensor] = {}
    for weight, chosen in selection.items():
        found = sites.at_weight(weight)
        shape = (sum(site.out_features for site in found), found[0].in_features)
        for site, cut in split(sites, weight, chosen):
            part = _kept_entries(site, cut, chosen)
            places.append(place_of(site, part, shape))
            if isinstance(part, Entries):
                entries[site.name] = part.indices
    return DeltaConfig(
        task_type=task_type,
        delta=parts.to_plain(options, "deltas"),
        places=[place.to_plain() for place in places],
        modules_to_save=list(modules_to_save) or None,
        seed=seed,
    ).with_entries(entries)


def _kept_entries(site: Site, cut: Part, chosen: Part) -> Part:
    """Keep entries that cover a whole site as entries: a delta of entries needs them."""
    if isinstance(chosen, Entries) and isinstance(cut, Whole):
        return Entries(torch.arange(site.out_features * site.in_features))
    return cut

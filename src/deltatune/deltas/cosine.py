"""Cosine: the change has few coefficients in a cosine spectrum, whose places are learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deltatune.deltas.delta import Delta
from deltatune.deltas.dropping import new_seed
from deltatune.deltas.spectral_costs import cheapest_way
from deltatune.deltas.spectral_locations import (
    LocationRule,
    largest_cells,
    low_frequency_cells,
    uniform_cells,
)
from deltatune.deltas.spectral_options import CosineSpectrum
from deltatune.deltas.spectral_products import SpectralProduct, linear
from deltatune.deltas.spectral_weight import weight as built_weight
from deltatune.errors import InputError, NotComposable
from deltatune.orthonormal import BASES, Basis
from deltatune.part import Part
from deltatune.parts import Source, declare
from deltatune.reports.location_distance import location_distance

__all__ = ["CosineDelta", "CosineSpectrum"]

OF_WEIGHTS = ("sparse", "dense", "fast")


@declare(
    "deltas",
    "cosine",
    options=CosineSpectrum,
    source=Source(
        authors="Du et al.",
        year=2025,
        title="LoCA: Location-Aware Cosine Adaptation for Parameter-Efficient Fine-Tuning",
        arxiv="2502.06820",
        where="algorithm 1",
    ),
)
class CosineDelta(Delta):
    """Add scale * C^T S D to the weight; S `(out, in)` holds B coefficients, all 0 at the start.

    C and D are orthonormal bases of the output and input axis. Coefficients in one cell add up.
    Locations are numbers that round to cells, and get a derivative by central differences; they
    stay float32 whatever the model's dtype, since half precision cannot tell neighbouring cells.
    The paper has the coefficients and the locations take turns (`updates/alternate.py`).

    Unlike the published code, whole turns of the cosine are taken off in integers, the fast way
    keeps its complex factors, and shares reach the last index.
    """

    Options: ClassVar[type[Any]] = CosineSpectrum
    roles: ClassVar[dict[str, str]] = {"coefficients": "coefficient", "locations": "location"}
    reads_weight = False
    options: CosineSpectrum
    locations: Tensor

    def __init__(
        self,
        options: CosineSpectrum,
        weight: Tensor,
        site: Any,
        *,
        part: Part | None = None,
        statistics: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw or lay out the locations; see `Delta`.

        Raises:
            InputError: more coefficients than entries, or a size that the basis does not have.
        """
        super().__init__(
            options, weight, site, part=part, statistics=statistics, generator=generator
        )
        number = options.number(self.out_features, self.in_features)
        self.rule = LocationRule(
            rows=self.out_features,
            columns=self.in_features,
            unit=options.location_unit,
            is_authors=options.location_gradient == "authors",
        )
        self.has_start = bool(options.needs)
        locations = self._first_locations(number, generator)
        # No buffer: not saved, but drawn or measured again wherever a run goes on.
        self.first_cells = self.rule.cells(locations)
        locations = locations.to(weight.device)
        if options.learns_locations:
            self.locations = nn.Parameter(locations)  # (2, B)
        else:
            self.register_buffer("locations", locations)
        self.ways: dict[int, str] = {}  # tokens of a training pass -> how it was computed
        values = torch.zeros(number)
        if options.values == "normal":
            values.normal_(generator=generator)
        self.coefficients = nn.Parameter(values.to(weight.device))  # (B,)
        self.register_load_state_dict_post_hook(_check_locations)  # type: ignore[no-untyped-call]

    @classmethod
    def needed(cls, options: Any) -> frozenset[str]:
        """Return the gradient of the weights where locations are chosen by it."""
        return frozenset(options.needs)

    @classmethod
    def check(
        cls,
        options: CosineSpectrum,
        out_features: int,
        in_features: int,
        part: Part,
        site_name: str,
    ) -> None:
        """Refuse entries, more coefficients than entries, and sizes without such a basis."""
        super().check(options, out_features, in_features, part, site_name)
        entries = out_features * in_features
        if options.number(out_features, in_features) > entries:
            raise InputError(
                f"coefficients={options.coefficients:g} is not allowed: {site_name} has "
                f"{out_features} x {in_features} = {entries:,} entries, give at most as many, or a "
                f"share of them below 1"
            )
        for size in (out_features, in_features):
            BASES[options.basis].check(size, site_name)

    @property
    def basis(self) -> Basis:
        """The basis of both axes."""
        return BASES[self.options.basis]

    def _first_locations(self, number: int, generator: torch.Generator | None) -> Tensor:
        rows, columns = self.out_features, self.in_features
        if self.options.locations == "uniform":
            return self.rule.of_shares(torch.rand(2, number, generator=generator))
        if self.options.locations == "distinct":
            return self.rule.of_cells(uniform_cells(number, rows, columns, generator))
        # With `gradient`, these stand until something is measured.
        return self.rule.of_cells(low_frequency_cells(number, rows, columns))

    @torch.no_grad()
    def start(self, weight: Tensor, statistics: Any = None) -> None:
        """Go where `statistics["weight_gradient"]`, `(out, in)`, is largest, if that was asked for.

        Raises:
            InputError: nothing was measured.
        """
        if not self.options.needs:
            return
        if statistics is None or "weight_gradient" not in statistics:
            raise InputError(
                f"locations=gradient needs weight_gradient of {self.site_name}, measured on "
                f"examples: give them, as in recipe.prepare(base, dataloader)"
            )
        gradient = statistics["weight_gradient"].to(torch.float32)
        cells = largest_cells(self.coefficients.numel(), gradient, self.basis)
        self.locations.copy_(self.rule.of_cells(cells))
        self.first_cells = cells.cpu()

    def cells(self) -> Tensor:
        """Return the row and column of each coefficient in the spectrum, `(2, B)` int64."""
        locations = self.locations.detach()
        if isinstance(locations, DTensor):
            locations = locations.full_tensor()
        return self.rule.cells(locations)

    def way_for(self, tokens: int) -> str:
        """Return how a pass over so many tokens is computed."""
        if self.options.way != "auto":
            return self.options.way
        return cheapest_way(
            tokens,
            coefficients=self.coefficients.numel(),
            rows=self.out_features,
            columns=self.in_features,
            device=self.coefficients.device.type,
            has_fast_transform=self.basis.has_fast_transform,
        )

    def delta_weight(self, weight: Tensor) -> Tensor:
        """Return the change, `(out, in)` float32."""
        way = self.options.way if self.options.way in OF_WEIGHTS else "fast"
        return built_weight(self.coefficients, self._float_locations(), self._product(way))

    def delta_output(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the change of the output; only the ways that build the weight keep more of it."""
        tokens = inputs.numel() // max(1, inputs.shape[-1])
        way = self.way_for(tokens)
        if self.training:
            self.ways[tokens] = way
        if way not in OF_WEIGHTS:
            return linear(inputs, self.coefficients, self._float_locations(), self._product(way))
        dropped = nn.functional.dropout(inputs, self.options.dropout, self.training)
        built = built_weight(self.coefficients, self._float_locations(), self._product(way))
        return nn.functional.linear(dropped, built.to(inputs.dtype))

    def figures(self) -> Mapping[str, Any]:
        """Return how far the locations are from where they began, and the ways of training."""
        shape = (self.out_features, self.in_features)
        travelled = location_distance(self.first_cells, self.cells(), shape=shape)
        return {**travelled, "way_by_tokens": {str(n): self.ways[n] for n in sorted(self.ways)}}

    def _product(self, way: str) -> SpectralProduct:
        dropout = self.options.dropout if self.training else 0.0
        return SpectralProduct(
            basis=self.basis,
            rule=self.rule,
            way=way,
            scale=self.options.scale,
            dropout=dropout,
            seed=new_seed() if dropout else 0,
        )

    def _float_locations(self) -> Tensor:
        if self.locations.dtype not in (torch.float32, torch.float64):
            raise NotComposable(
                f"locations of {self.site_name} came as {self.locations.dtype}, which cannot tell "
                f"neighbouring cells: load the base in bfloat16 and turn FSDP's mixed precision "
                f"off (param_dtype=None), which leaves the delta in float32"
            )
        return self.locations

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move locations with the module, but keep their dtype."""
        exact = self.locations.detach()
        applied = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.locations.dtype != exact.dtype and self.locations.dtype.itemsize < 4:
            self.locations.data = exact.to(self.locations.device)
        return applied

    @staticmethod
    def number_of_parameters(
        options: CosineSpectrum, out_features: int, in_features: int, part: Part | None = None
    ) -> int:
        """Return B, or 3 B where locations train: a row and a column beside each value."""
        return options.number(out_features, in_features) * (3 if options.learns_locations else 1)


def _check_locations(delta: CosineDelta, incompatible: Any) -> None:
    """Refuse locations that no training gives, as a broken file may hold."""
    locations = delta.locations.detach()
    if isinstance(locations, DTensor):  # each process looks at its own piece
        locations = locations.to_local()
    trained = isinstance(delta.locations, nn.Parameter)
    if not locations.is_meta and not delta.rule.may_hold(locations, trained=trained):
        raise InputError(
            f"the locations of {delta.site_name} lie outside its spectrum of {delta.out_features} "
            f"x {delta.in_features} cells, or are not finite: take the adapter's file as it was "
            f"written"
        )

"""Which way to a spectral product is the cheapest, by the time that each kind of work takes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["cheapest_way"]


@dataclass(frozen=True)
class _Costs:
    """Nanoseconds on one device.

    Args:
        product: of a multiply-add in a matrix product.
        transform: of one number of activations through a transform, gathering included.
        gather: of one coefficient read or added at one token.
    """

    product: float
    transform: float
    gather: float


# CPU: measured with one thread (benchmarks/loca, rows "ways"). Others: an estimate, products at
# 100 TFLOP/s, and 40 bytes moved for a number at 2 TB/s; not measured.
_CPU = _Costs(product=0.0155, transform=1.7, gather=1.3)
_ACCELERATOR = _Costs(product=2e-5, transform=0.02, gather=0.01)
# Passes of a training step: forward; backward through both axes, and the inputs once more.
_PASSES = 2.5


def cheapest_way(
    tokens: int,
    *,
    coefficients: int,
    rows: int,
    columns: int,
    device: str,
    has_fast_transform: bool = True,
) -> str:
    """Return `factored`, `transform`, `sparse` or `fast`.

    Args:
        tokens: of the pass.
        coefficients: B.
        rows: p.
        columns: q.
        device: type of the device.
        has_fast_transform: of the basis; else a transform is a product with a square matrix.
    """
    cost = _CPU if device == "cpu" else _ACCELERATOR
    axes = rows + columns
    of_rows = cost.product * coefficients * axes  # the rows' own cosines weigh about as much
    # A built weight is multiplied with inputs, with gradients, and met by the weight's gradient.
    of_weight = 3 * rows * columns * tokens * cost.product
    # Of all numbers of a token through both axes, and of all rows and columns of a weight.
    through = cost.transform * axes
    of_all = 4 * rows * columns * cost.transform
    if not has_fast_transform:
        through += cost.product * (rows**2 + columns**2)
        of_all += 2 * rows * columns * axes * cost.product
    times = {
        "factored": _PASSES * tokens * of_rows + 40 * of_rows,
        "transform": _PASSES * tokens * (through + cost.gather * coefficients),
        "sparse": 4 * coefficients * rows * columns * cost.product + of_weight,
        "fast": of_all + of_weight,
    }
    return min(times, key=lambda way: times[way])

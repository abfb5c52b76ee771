"""Starts of deltas that are measured on examples, one weight at a time."""

from __future__ import annotations

from typing import Any

from torch import nn

from deltatune import parts
from deltatune.bridges.carrier import Injection
from deltatune.bridges.peft_layer import DeltaLayer
from deltatune.statistics import Measurements, check_needs

__all__ = ["start_from_statistics"]


def start_from_statistics(
    model: Any, base: nn.Module, options: Any, injection: Injection, adapter_name: str = "default"
) -> None:
    """Measure what an adapter's deltas need and start them from it; most need nothing.

    The statistics of one weight are gone before those of the next are there: covariances of a
    whole model would be larger than the model.

    Args:
        model: a `PeftModel` of the type `DELTA`, just made.
        base: the model inside it.
        options: of the delta.
        injection: places, selection and calibration batches.
        adapter_name: of the adapter.

    Raises:
        InputError: there are no examples to measure on.
    """
    needs = parts.declaration_of(options, "deltas").implementation.needed(options)
    if not needs:
        return
    check_needs(options, injection.calibration)
    (name,) = needs
    assert injection.calibration is not None  # `check_needs` saw to it
    measurements = Measurements(
        model=base, sites=injection.sites, calibration=injection.calibration, needs=needs
    )
    # Hooks see the inputs of the layers that now stand in the base; without the adapter these are
    # the base's own.
    with model.disable_adapter():
        measured = measurements.measure(name, list(injection.selection), batches=options.batches)
        for weight, tensor in measured:
            layer = base.get_submodule(injection.sites.at_weight(weight)[0].module)
            assert isinstance(layer, DeltaLayer)
            layer.start(adapter_name, {name: tensor})
    model.peft_config[adapter_name].awaits_tensors = False

"""What a comparison measures of each run, named, with units and the better direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["COLUMNS", "Column", "columns_for", "of_run"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of each run.

    Args:
        name: in `comparison.json`.
        title: for readers.
        unit: `B`, `s`, `tokens/s`, `FLOP`, `kWh`, `kg`, or empty for plain numbers.
        better: `higher`, `lower`, or empty where neither is.
        what: one sentence.
    """

    name: str
    title: str
    unit: str = ""
    better: str = "lower"
    what: str

    def to_dict(self) -> dict[str, str]:
        """Return plain values for a JSON file."""
        return asdict(self)


COLUMNS = (
    Column(
        name="score",
        title="score",
        better="higher",
        what="The task's metric on the test part, after training.",
    ),
    Column(
        name="forgetting",
        title="forgetting",
        what="By how much the loss on held-out data of the base's own pre-training rose, in nats.",
    ),
    Column(
        name="calibration_error",
        title="calibration error",
        what="Mean distance of confidence and accuracy over 15 bins of confidence.",
    ),
    Column(
        name="trainable_parameters",
        title="parameters",
        what="Scalars that train at a time.",
    ),
    Column(
        name="trainable_parameters_ever",
        title="parameters ever",
        what="Scalars that trained at any time of the run.",
    ),
    Column(name="adapter_bytes", title="adapter", unit="B", what="Size of what the run saved."),
    Column(
        name="optimizer_bytes",
        title="optimizer state",
        unit="B",
        what="State of the optimizer at the end.",
    ),
    Column(
        name="peak_memory_above_base_bytes",
        title="peak memory",
        unit="B",
        what="Peak while training above the loaded base; on a CPU of the whole process.",
    ),
    Column(
        name="predicted_memory_bytes",
        title="peak memory, predicted",
        unit="B",
        what="The same as the plan expected it.",
    ),
    Column(
        name="median_step_seconds",
        title="step time",
        unit="s",
        what="Median wall time of an optimizer step.",
    ),
    Column(
        name="tokens_per_second",
        title="tokens per second",
        unit="tokens/s",
        better="higher",
        what="Trained tokens without padding, per second of training.",
    ),
    Column(
        name="flops",
        title="FLOPs",
        unit="FLOP",
        what="Of the whole run, counted on its first micro-batch and scaled by tokens.",
    ),
    Column(
        name="predicted_flops",
        title="FLOPs, predicted",
        unit="FLOP",
        what="The same by formula, from shapes alone.",
    ),
    Column(
        name="wall_seconds",
        title="training time",
        unit="s",
        what="Sum over all optimizer steps.",
    ),
    Column(
        name="predicted_seconds",
        title="training time, predicted",
        unit="s",
        what="The same as the plan expected it from timing one micro-batch.",
    ),
    Column(
        name="energy_kilowatt_hours",
        title="energy",
        unit="kWh",
        what="Of the run's process from loading to scores; the notes tell measured from estimated.",
    ),
    Column(
        name="carbon_kilograms",
        title="CO2e",
        unit="kg",
        what="Energy times the grid intensity that was given.",
    ),
)


def columns_for(metric: str, *, higher_is_better: bool) -> list[dict[str, str]]:
    """Return the columns as plain values, the first named after the task's metric."""
    score, *others = COLUMNS
    better = "higher" if higher_is_better else "lower"
    first = {**score.to_dict(), "title": metric, "better": better}
    return [first, *(column.to_dict() for column in others)]


def of_run(
    evaluation: Mapping[str, Any], costs: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, float | None]:
    """Return every figure of a finished run that is known, by name of column.

    Args:
        evaluation: after training, as `evaluation.json` holds it.
        costs: the content of `costs.json`.
        others: figures that stand in neither.
    """
    score = evaluation["metrics"][evaluation["headline"]]
    found = {**costs, **others, "score": score}
    return {column.name: _number(found.get(column.name)) for column in COLUMNS}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)

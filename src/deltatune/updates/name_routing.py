"""EfficientFT as its authors' code routes it: by fragments of parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from deltatune.parts import Source, declare
from deltatune.sites import Sites
from deltatune.updates.depth import check_ratio
from deltatune.updates.update import Factor, TrainedParameter

__all__ = ["NameRouting"]


@declare(
    "updates",
    "name_routing",
    source=Source(
        authors="Yao et al.",
        year=2025,
        title=(
            "Theoretical Insights into Fine-Tuning Attention Mechanism: "
            "Generalization and Optimization"
        ),
        arxiv="2410.02247",
        where="the authors' code, chen123CtrlS/EfficientFT",
    ),
)
@dataclass(frozen=True, kw_only=True)
class NameRouting:
    """Give the value's rate to what the authors' code takes for a value, slips included.

    The code asks for fragments of a parameter's name, in this order: an adapter of an embedding has
    a rate of its own; a name with `value` or `v_proj`, and every tensor with one axis, belongs to
    the query if it says `query`, to the key if it says `key`, else to the value, whose biases do
    not decay; a name with `query` or `q_proj` belongs to the query; all else to the key. Query and
    key have the base rate. Only for reproducing published runs: biases of the head are sped up, and
    the values of T5, GPT-2, DistilBERT and of fused projections are not. `Ratios` has no such gaps.

    Args:
        value_ratio: lambda in the paper.
        embedding_ratio: of adapters of an embedding; the code has 1e-6 at a base rate of 1e-4 (it
            misspells the option that should change it).
    """

    changes_who_trains: ClassVar[bool] = False

    value_ratio: float = 4.0
    embedding_ratio: float = 0.01

    def __post_init__(self) -> None:
        check_ratio(self.value_ratio)
        check_ratio(self.embedding_ratio)

    @classmethod
    def example(cls) -> NameRouting:
        """Return the rule with its defaults."""
        return cls()

    def factors(self, parameters: Sequence[TrainedParameter], sites: Sites) -> Mapping[str, Factor]:
        """Return parameter name -> factor."""
        return {parameter.name: self._factor(parameter) for parameter in parameters}

    def live(
        self, step: int, parameters: Sequence[TrainedParameter], *, steps: int
    ) -> frozenset[str] | None:
        """Return None: all train at every step."""
        return None

    def _factor(self, parameter: TrainedParameter) -> Factor:
        if parameter.role == "embedding" and parameter.part_role in ("down", "up"):
            return Factor(learning_rate=self.embedding_ratio)
        group = _group(parameter)
        label = "" if group == parameter.role else f"as {group}"
        if group != "value":
            return Factor(label=label)
        is_bias = "bias" in parameter.canonical
        return Factor(
            learning_rate=self.value_ratio, weight_decay=0.0 if is_bias else 1.0, label=label
        )


def _group(parameter: TrainedParameter) -> str:
    # The base's own part of the name: an adapter of ours may be called after the role that it
    # changes, which would put right what the authors' code gets wrong.
    name = parameter.canonical
    if "value" in name or "v_proj" in name or len(parameter.shape) == 1:
        if "query" in name:
            return "query"
        return "key" if "key" in name else "value"
    return "query" if "query" in name or "q_proj" in name else "key"

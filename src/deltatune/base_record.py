"""What an adapter remembers of its base: enough to refuse another one by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.bridges.base_parameters import base_parameters
from deltatune.bridges.quantized import is_packed, shape_of_packed
from deltatune.errors import InputError

__all__ = ["BaseRecord", "WeightRecord", "base_record"]

SAMPLES = 1024  # values of each weight
# What a configuration holds beside the function that its weights compute.
NOT_THE_FUNCTION = (
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "transformers_version",
    "architectures",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "pad_token_id",
    "use_cache",
    "initializer_range",
    "initializer_factor",
    "chunk_size_feed_forward",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
)
DROPOUT = ("dropout", "_pdrop", "dropout_prob", "dropout_rate", "layerdrop")


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """One weight of a base.

    Args:
        shape: as it is stored.
        digest: of evenly spaced values, rounded to bfloat16, so that it is the same for a base in
            float32 and in bfloat16; empty where the weight holds no values (device `meta`) or
            packed ones, so that an adapter goes from a quantised base to the whole one and back.
        digest_of_half: the same, rounded to float16 before, for a base that is loaded in float16.
    """

    shape: tuple[int, ...]
    digest: str
    digest_of_half: str

    def has_values_of(self, other: WeightRecord) -> bool:
        """Tell whether two weights can be one in two precisions; True where one has no values."""
        mine, others = {self.digest, self.digest_of_half}, {other.digest, other.digest_of_half}
        return bool(mine & others) or "" in mine | others


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """A base: how it was called, what its configuration computes, and samples of its weights.

    The name is for messages. Two bases are one if their content is, wherever they lie and in
    however many files.

    Args:
        name: folder or Hugging Face name.
        configuration: all that decides the function of the weights, as plain JSON values.
        weights: name -> record.
        left_out: names and modules that an adapter holds whole, so that the base's do not matter.
    """

    name: str
    configuration: Mapping[str, Any]
    weights: Mapping[str, WeightRecord]
    left_out: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A sha256 over names, shapes and sampled values of the weights."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.weights.items()):
            digest.update(f"{name} {weight.shape} {weight.digest}\n".encode())
        return digest.hexdigest()

    def leaving_out(self, names: Sequence[str]) -> BaseRecord:
        """Return the record without some weights, by name or by the end of a module's path.

        What an adapter holds whole (a head that trained) does not have to be in its base.
        """
        kept = {
            name: weight
            for name, weight in self.weights.items()
            if not any(name == given or f".{given}." in f".{name}" for given in names)
        }
        left_out = tuple(dict.fromkeys([*self.left_out, *names]))
        return replace(self, weights=kept, left_out=left_out)

    def to_plain(self) -> dict[str, Any]:
        """Return JSON values; `from_plain` gives the record back."""
        return {
            "name": self.name,
            "configuration": dict(self.configuration),
            "weights": {
                name: [list(weight.shape), weight.digest, weight.digest_of_half]
                for name, weight in self.weights.items()
            },
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_plain(cls, plain: Any) -> BaseRecord:
        """Read what `to_plain` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            weights = {
                name: WeightRecord(shape=tuple(shape), digest=digest, digest_of_half=half)
                for name, (shape, digest, half) in plain["weights"].items()
            }
            return cls(
                name=plain["name"],
                configuration=dict(plain["configuration"]),
                weights=weights,
                left_out=tuple(plain["left_out"]),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(
                "the adapter's record of its base is not readable: take the adapter's folder as it "
                "was written, or train again"
            ) from error

    def check(self, given: BaseRecord) -> None:
        """Refuse another base than the one recorded here.

        Raises:
            InputError: with the names of both and the first difference.
        """
        given = given.leaving_out(self.left_out)
        difference = self._configured_otherwise(given) or self._weighs_otherwise(given)
        if difference:
            raise InputError(
                f"the adapter was trained on the base {self.name!r}, and {given.name!r} is another "
                f"one: {difference}; load it on the base that it was trained on"
            )

    def _configured_otherwise(self, given: BaseRecord) -> str:
        # Keys that only one version of transformers writes say nothing of the base.
        for key, value in self.configuration.items():
            if key in given.configuration and given.configuration[key] != value:
                return f"its {key} is {given.configuration[key]!r} where {value!r} was"
        return ""

    def _weighs_otherwise(self, given: BaseRecord) -> str:
        for have, other, verb in ((self, given, "lacks"), (given, self, "has beside it")):
            extra = [name for name in have.weights if name not in other.weights]
            if extra:
                return f"it {verb} {_listed(extra)}"
        for name, weight in self.weights.items():
            shape = given.weights[name].shape
            if shape != weight.shape:
                return f"its {name} has the shape {shape} where {weight.shape} was"
        changed = [
            name
            for name, weight in self.weights.items()
            if not weight.has_values_of(given.weights[name])
        ]
        return f"it has other values in {_listed(changed)}" if changed else ""


def base_record(model: nn.Module, name: str = "") -> BaseRecord:
    """Record a base; a strided read of each weight, no copy of the model.

    Args:
        model: the base, with or without adapters in it.
        name: how the user calls it; what its configuration says if not given.
    """
    config: Any = getattr(model, "config", None)
    return BaseRecord(
        name=name or str(getattr(config, "_name_or_path", "") or type(model).__name__),
        configuration=_configuration(config),
        weights={found: _weight_record(weight) for found, weight in base_parameters(model)},
    )


def _weight_record(parameter: Tensor) -> WeightRecord:
    shape = tuple(int(size) for size in parameter.shape)
    if is_packed(parameter):  # the rounded values are not those of the base as it is published
        return WeightRecord(shape=shape_of_packed(parameter), digest="", digest_of_half="")
    if parameter.is_meta:
        return WeightRecord(shape=shape, digest="", digest_of_half="")
    values = parameter.detach().reshape(-1)
    values = values[:: max(values.numel() // SAMPLES, 1)].cpu()
    return WeightRecord(
        shape=shape, digest=_digest(values), digest_of_half=_digest(values.to(torch.float16))
    )


def _digest(values: Tensor) -> str:
    rounded = values.to(torch.bfloat16).contiguous().view(torch.uint8)
    return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:16]


def _configuration(config: Any) -> dict[str, Any]:
    if not hasattr(config, "to_dict"):
        return {}
    plain: dict[str, Any] = json.loads(json.dumps(_deciding(config.to_dict()), default=str))
    return plain


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(key): _deciding(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in NOT_THE_FUNCTION and not str(key).endswith(DROPOUT)
    }


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

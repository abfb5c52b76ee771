"""The trained model for other tools: written, reloaded, compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from deltatune.adapter_record import AdapterRecord
from deltatune.base import Base, load_base
from deltatune.bridges.base_parameters import base_parameters
from deltatune.bridges.carriers import Carrier
from deltatune.bridges.quiet import quiet
from deltatune.data.images import random_image
from deltatune.errors import InputError, NotMergeable, WorkError, unknown_name
from deltatune.files import replace_folder_atomically
from deltatune.inputs import pixels_for
from deltatune.processors import Processor
from deltatune.recipe import Recipe
from deltatune.run_folder import RunFolder
from deltatune.seeds import generator_for
from deltatune.weight_delta import WeightDelta

__all__ = ["Exported", "export", "load", "trained_delta"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote, and how far it is from the trained model.

    Args:
        folder: what was written.
        kind: merged, peft or lora.
        largest_difference: of any logit, absolute.
        largest_logit: of the trained model, absolute.
        tolerance: allowed ratio of the two.
    """

    folder: str
    kind: str
    largest_difference: float
    largest_logit: float
    tolerance: float

    @property
    def ratio(self) -> float:
        """The largest difference relative to the largest logit."""
        return self.largest_difference / max(self.largest_logit, 1e-30)

    def line(self) -> str:
        """Return what a user reads."""
        return (
            f"wrote {self.kind} to {self.folder}; reloaded, its logits differ by at most "
            f"{self.largest_difference:.2e} ({self.ratio:.1e} of the largest; "
            f"allowed {self.tolerance:.0e})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "largest_difference_ratio": self.ratio}


@dataclass(frozen=True, kw_only=True)
class _Trained:
    run: RunFolder
    recipe: Recipe
    inputs: Mapping[str, Any]
    carrier: Carrier
    record: AdapterRecord

    def base(self) -> Base:
        """Load the run's base afresh in float32.

        Raises:
            InputError: what lies there now is another model than the one that was trained on.
        """
        found = self.loaded(self.inputs["model"])
        self.record.base.check(found.record)
        return found

    def loaded(self, place: str | Path) -> Base:
        """Load a model for the run's task in float32."""
        return load_base(
            place,
            task=self.inputs["task"],
            label_names=self.inputs["label_names"],
            allow_remote_code=self.inputs["allow_remote_code"],
            seed=self.recipe.training.seed,
        )

    def on(self, base: Base) -> nn.Module:
        """Put the run's delta on its base."""
        return self.carrier.load(base.model, self.run.adapter).eval()


def _open(folder: str | Path) -> _Trained:
    run = RunFolder(Path(folder))
    if not run.path.is_dir():
        raise InputError(
            f"run folder {str(folder)!r} does not exist: give the --output of a train command"
        )
    if not run.is_finished:
        raise InputError(
            f"{str(folder)!r} holds no finished run: finish it with deltatune train --resume"
        )
    recipe = run.recorded_recipe()
    inputs = run.read(run.environment)["inputs"]
    record = AdapterRecord.load(run.adapter)
    record.check_file(run.adapter)
    return _Trained(run=run, recipe=recipe, inputs=inputs, carrier=recipe.carrier(), record=record)


@quiet()
def load(folder: str | Path) -> nn.Module:
    """Load the tuned model of a finished run: its base with the delta on it, in evaluation mode.

    Raises:
        InputError: `folder` holds no finished run.
    """
    trained = _open(folder)
    return trained.on(trained.base())


@quiet()
def trained_delta(folder: str | Path) -> tuple[WeightDelta, Mapping[str, Tensor]]:
    """Return what a finished run changed, and the weights of its base, by the base's own names.

    Raises:
        InputError: `folder` holds no finished run.
        NotMergeable: the run's adapter is no change of weights.
    """
    trained = _open(folder)
    base = trained.base()
    if trained.carrier.trains_base:
        delta = WeightDelta.load(trained.run.adapter)
        return delta, {name: weight.detach() for name, weight in base.model.named_parameters()}
    # No adapter of a run trains tensors of the base, so those under it are still the base's.
    model = trained.on(base)
    return WeightDelta.from_peft(model), {
        name: weight.detach() for name, weight in base_parameters(model)
    }


@quiet()
def export(
    folder: str | Path, to: str, *, output: str | Path | None = None, tolerance: float = 1e-4
) -> Exported:
    """Write a finished run's model for other tools, and prove that it is the trained one.

    The result is computed in float32 on the original weights, reloaded from what was written, and
    compared with the trained model on fixed random token sequences or images.

    Args:
        folder: of the run.
        to: `merged` (a plain transformers model), `peft` (loads after `import deltatune`) or `lora`
            (plain peft).
        output: folder to write; `<folder>/export-<to>` if not given.
        tolerance: allowed largest difference of logits over the largest logit. Folding in float32
            rounds each weight once, which stays near 1e-6.

    Raises:
        InputError: no finished run, an unknown kind, an output that exists.
        NotMergeable: the delta cannot be written as asked.
        WorkError: the reloaded model differs by more than `tolerance`; nothing is left behind.
    """
    if to not in _WRITERS:
        raise unknown_name("export kind", to, _WRITERS)
    trained = _open(folder)
    if not trained.carrier.first_export:
        raise NotMergeable(
            f"the run {str(folder)!r} has a block around its delta, which no other tool knows, nor "
            f"can it be folded into the base: load the run's folder with deltatune.load"
        )
    target = Path(output) if output is not None else trained.run.path / f"export-{to}"
    if target.exists():
        raise InputError(f"output {str(target)!r} exists: remove it or give another --output")
    try:
        return _written(trained, to, target, tolerance)
    except (OSError, SafetensorError) as error:
        raise WorkError(
            f"writing {str(target)!r} failed; nothing was kept: "
            f"{getattr(error, 'strerror', None) or error}; make room or give another --output"
        ) from error


def _written(trained: _Trained, to: str, target: Path, tolerance: float) -> Exported:
    """Write, reload, compare; the folder appears only if all went well."""
    write, reload = _WRITERS[to]
    base = trained.base()
    probe = _probe(base)
    model = trained.on(base)
    wanted = _logits(model, probe)
    with replace_folder_atomically(target) as temporary:
        write(trained, model, base.processor, temporary)
        del model, base  # the reloaded model shall be the only one in memory
        given = _logits(reload(trained, temporary), probe)
        result = Exported(
            folder=str(target),
            kind=to,
            largest_difference=float((given - wanted).abs().max()),
            largest_logit=float(wanted.abs().max()),
            tolerance=tolerance,
        )
        if not result.ratio <= tolerance:
            raise WorkError(
                f"the exported model is not the trained one; nothing was kept: {result.line()}"
            )
    return result


def _probe(base: Base) -> dict[str, Tensor]:
    """Return fixed random inputs, as the base's own processor could give them."""
    if isinstance(base.processor, PreTrainedTokenizerBase):
        ids = _random_tokens(base.model)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return pixels_for(base)([{"image": random_image(number)} for number in range(4)])


def _random_tokens(model: nn.Module, sequences: int = 4, length: int = 32) -> Tensor:
    """Return fixed random token ids, `(sequences, length)`.

    The end token stands at the end and nowhere else: models such as T5 look for it to classify.
    """
    config: Any = model.config
    length = min(length, getattr(config, "max_position_embeddings", length) or length)
    generator = generator_for(0, "export probe")
    end = getattr(config, "eos_token_id", None)
    ends = torch.tensor([end] if isinstance(end, int) else end or [], dtype=torch.int64)
    ids = torch.arange(config.vocab_size)
    ids = ids[~torch.isin(ids, ends)]
    probe = ids[torch.randint(0, ids.numel(), (sequences, length), generator=generator)]
    if ends.numel():
        probe[:, -1] = ends[0]
    return probe


def _logits(model: nn.Module, probe: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**probe).logits
    return logits.float()


def _write_merged(trained: _Trained, model: nn.Module, processor: Processor, folder: Path) -> None:
    plain: Any = trained.carrier.merged(model)
    plain.save_pretrained(folder)
    processor.save_pretrained(folder)


def _write_peft(trained: _Trained, model: nn.Module, processor: Processor, folder: Path) -> None:
    if trained.carrier.trains_base:
        raise NotMergeable(
            "in-place training changes the base's own weights and has no adapter that peft could "
            "load: export with --to merged"
        )
    trained.carrier.save(model, folder, lambda: trained.base().model)
    AdapterRecord.of(folder, trained.record.base).save(folder)


def _write_lora(trained: _Trained, model: nn.Module, processor: Processor, folder: Path) -> None:
    trained.carrier.save_as_lora(model, folder)
    AdapterRecord.of(folder, trained.record.base).save(folder)


def _reload_merged(trained: _Trained, folder: Path) -> nn.Module:
    return trained.loaded(folder).model  # in evaluation mode already


def _reload_adapter(trained: _Trained, folder: Path) -> nn.Module:
    return trained.carrier.load(trained.base().model, folder).eval()


def _reload_lora(trained: _Trained, folder: Path) -> nn.Module:
    model: nn.Module = PeftModel.from_pretrained(trained.base().model, folder)
    model.eval()
    return model


_Writer = Callable[[_Trained, nn.Module, Processor, Path], None]
_Reloader = Callable[[_Trained, Path], nn.Module]
_WRITERS: dict[str, tuple[_Writer, _Reloader]] = {
    "merged": (_write_merged, _reload_merged),
    "peft": (_write_peft, _reload_adapter),
    "lora": (_write_lora, _reload_lora),
}

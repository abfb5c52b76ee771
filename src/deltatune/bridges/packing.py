"""Documents in one row that do not see each other, in each attention implementation on offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltatune.bridges.attention_implementations import AttentionImplementations
from deltatune.bridges.start_checks import REFUSALS, difference, random_documents
from deltatune.bridges.supervised_head import causal_model
from deltatune.data.packing import DOCUMENT_LENGTHS, flattened
from deltatune.training_mode import evaluating

__all__ = ["BY_DOCUMENT", "Packing", "choose"]

BY_DOCUMENT = "deltatune_by_document"


def _by_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """PyTorch's fused attention, document by document: no mask, and no pair of two documents.

    Args:
        module: the attention layer.
        query: `(1, n_heads, tokens, d_head)`.
        key: `(1, n_key_heads, tokens, d_head)`.
        value: as `key`.
        attention_mask: used only without documents, where all is as in "sdpa".
        document_lengths: add up to `tokens`.
        options: of transformers' own function.
    """
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if document_lengths is None:
        result: tuple[Tensor, Tensor | None] = attend(
            module, query, key, value, attention_mask, **options
        )
        return result
    lengths = list(document_lengths)
    pieces = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [attend(module, *piece, None, **options)[0] for piece in pieces]
    return torch.cat(outputs, dim=1), None  # (1, tokens, n_heads, d_head)


AttentionInterface.register(BY_DOCUMENT, _by_document)
AttentionMaskInterface.register(BY_DOCUMENT, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@dataclass(frozen=True)
class Packing:
    """How flattened batches reach a model.

    Args:
        implementation: the attention implementation that the model must have.
        attention_cost: for `PackingCollator`.
    """

    implementation: str
    attention_cost: float = 0.0

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a batch into what the model takes; a padded one stays as it is."""
        given = dict(inputs)
        lengths = given.pop(DOCUMENT_LENGTHS, None)
        if lengths is None:
            return given
        # transformers reads the documents off the positions where there is neither mask nor cache.
        del given["attention_mask"]
        given["use_cache"] = False
        on = given["input_ids"].device
        if self.implementation == BY_DOCUMENT:
            # A mask of four dimensions is handed on unread, which spares a (tokens, tokens) one.
            given["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=on)
            given[DOCUMENT_LENGTHS] = lengths
        elif "flash" in self.implementation:
            ends = torch.tensor([0, *lengths]).cumsum(0).to(on, torch.int32)  # (documents + 1,)
            given["cu_seq_lens_q"] = given["cu_seq_lens_k"] = ends
            given["max_length_q"] = given["max_length_k"] = max(lengths)
        return given


def choose(model: nn.Module, *, max_length: int) -> tuple[Packing | None, str]:
    """Find a way in which a packed document has the logits that it has alone.

    Each way is tried on the model itself, with three short random documents. The model keeps the
    attention implementation of the way that is found.

    Args:
        model: as it will train.
        max_length: tokens of the longest document.

    Returns:
        The way and "", or None and why there is none.
    """
    try:
        inner = causal_model(model)
    except TypeError as error:
        return None, str(error)
    before = AttentionImplementations(inner)
    reason = ""
    for packing in _ways(inner, str(inner.config._attn_implementation), max_length):
        inner.set_attn_implementation(packing.implementation)
        try:
            reason = _difference(model, packing)
        except REFUSALS as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        if not reason:
            return packing, ""
        before.restore()
    return None, reason


def _ways(model: PreTrainedModel, implementation: str, max_length: int) -> list[Packing]:
    if implementation == "sdpa":
        is_settable = model._can_set_attn_implementation() and _sees_whole(model, max_length)
        by_document = [Packing(BY_DOCUMENT)] if is_settable else []
        return [*by_document, Packing("sdpa", attention_cost(model))]
    if implementation == "eager":
        return [Packing("eager", attention_cost(model))]
    return [Packing(implementation)]


def _sees_whole(model: PreTrainedModel, max_length: int) -> bool:
    """Tell whether each layer sees a document as a whole, so that no mask is needed within it."""
    config: Any = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) or max_length
    return kinds <= {"full_attention", "sliding_attention"} and max_length <= window


def attention_cost(model: PreTrainedModel) -> float:
    """Return the FLOPs of attention for a pair of tokens over those of all else for a token."""
    config: Any = model.config.get_text_config()
    # Scores and weighted values: 4 FLOPs for each unit of width; a weight costs 2 for each token.
    pair = 4 * config.num_hidden_layers * config.hidden_size
    return float(pair / (2 * model.num_parameters(exclude_embeddings=True)))


def _difference(model: nn.Module, packing: Packing) -> str:
    """Tell what is wrong with packed documents, or ""."""
    documents = random_documents(model)
    lengths = [ids.shape[1] for ids in documents]
    others = [documents[0].flip(1), *documents[1:]]
    with evaluating(model):
        packed = _packed_logits(model, packing, documents)
        changed = _packed_logits(model, packing, others)
        leak = float((packed - changed)[lengths[0] :].abs().max())
        # The same sums over the same numbers: not a matter of rounding, in any precision.
        if leak > 1e-5 * float(packed.std()):
            return "a document's logits change with the document before it"
        for ids, logits in zip(documents, packed.split(lengths), strict=True):
            alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            if found := difference(logits, alone):
                return found
    return ""


def _packed_logits(model: nn.Module, packing: Packing, documents: Sequence[Tensor]) -> Tensor:
    batch = flattened([{"input_ids": ids[0].tolist(), "labels": ids[0]} for ids in documents])
    inputs = {
        name: value.to(documents[0].device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    logits: Tensor = model(**packing.arguments(inputs)).logits[0].float()
    return logits  # (tokens, vocab)

"""Only the rows that carry loss go through the output head, chunk by chunk, by the model's code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from deltatune.bridges.names import unwrapped
from deltatune.objectives.objective import RowObjective

__all__ = ["ELEMENTS_AT_A_TIME", "SupervisedHead", "bodies", "causal_model"]

ELEMENTS_AT_A_TIME = 2**26  # logits of one chunk: 256 MiB in float32, enough rows for a fast GEMM

Tail = Callable[[Tensor], Tensor]
Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SupervisedHead:
    """Takes the loss of a causal language model without ever forming the logits of a whole batch.

    The model's own forward pass does all of the work, so that heads with adapters, biases, tied
    weights, soft-capping and scaling are what they are there. It runs once with its body's output
    cut to one place, which costs nothing, and then over chunks of the supervised rows of that
    output, with the body standing still. Of each chunk the gradients are formed at once and the
    logits forgotten: a frozen head costs two products and keeps one vector for each supervised row.

    Args:
        model: a causal language model of transformers, or peft's wrapper of one.
        body: the module inside whose output is what the head takes, one of `bodies`.
        elements_at_a_time: logits of one chunk at most.
    """

    def __init__(
        self, model: nn.Module, body: nn.Module, *, elements_at_a_time: int = ELEMENTS_AT_A_TIME
    ) -> None:
        """Take off the wrappers."""
        self.model = causal_model(model)
        self.body = body
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        self.rows_at_a_time = max(elements_at_a_time // vocabulary, 1)

    def total(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        batch: Mapping[str, Any],
        objective: RowObjective,
        *,
        progress: float = 0.0,
    ) -> Tensor:
        """Return an objective's sum over a batch, `()` float32, differentiable.

        Args:
            model: what training calls: the model, or data parallelism around it.
            inputs: of the model.
            batch: with `labels`.
            objective: sums over rows of logits.
            progress: fraction of training done, in [0, 1].
        """
        wanted = objective.wanted(batch)

        def summed(tail: Tail, rows: Tensor) -> Tensor:
            if len(rows) == 0:
                # Zero, and still a function of body and head: with data parallelism every process
                # has to give each of its parameters a gradient.
                return tail(rows).float().sum()

            def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
                return objective.score(logits, labels, progress=progress)

            # Chunks of equal size: a small rest would make a slow product.
            chunks = -(-len(rows) // self.rows_at_a_time)
            pieces = zip(rows.detach().chunk(chunks), wanted.chunk(chunks), strict=True)
            return _total(tail, rows, pieces, score)

        return self._run(model, inputs, objective.places(batch), summed)

    def logits(self, model: nn.Module, inputs: Mapping[str, Any], places: Tensor) -> Tensor:
        """Return the logits `(rows, vocab)` at some `places` `(batch, seq)` bool, by the same way.

        For comparisons with the plain way; no chunks, no gradients formed ahead.
        """
        return self._run(model, inputs, places, lambda tail, rows: tail(rows))

    def _run(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        places: Tensor,
        consume: Callable[[Tail, Tensor], Tensor],
    ) -> Tensor:
        """Call the model with its innermost forward replaced: wrappers see one ordinary pass."""
        original = self.model.forward

        def forward(*args: Any, **kwargs: Any) -> ModelOutput:
            output = self._body_output(original, args, kwargs)
            hidden_states = _hidden_states(output)  # (batch, seq, d_model)
            if hidden_states.shape[:2] != places.shape:
                raise ValueError(
                    f"the body gives {tuple(hidden_states.shape)} for labels {tuple(places.shape)}"
                )
            rows = hidden_states[places]  # (rows, d_model)
            # Not called a loss: wrappers (AdaLoRA's) add terms of their own to one.
            return ModelOutput(total=consume(self._tail(original, output), rows))

        with _forward(self.model, forward):
            total: Tensor = model(**inputs)["total"]
        return total

    def _body_output(
        self, original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        outputs: list[Any] = []

        def keep(module: nn.Module, given: Any, output: Any) -> Any:
            outputs.append(output)
            # One row with the strides of a whole tensor: those of a slice would make the product
            # copy the head's weight first, which takes longer than a third of the step.
            row = _hidden_states(output)[0, :1].detach()  # (1, d_model)
            return _with_hidden_states(output, row[None])

        handle = self.body.register_forward_hook(keep)
        try:
            original(*args, **kwargs)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise ValueError(f"the body ran {len(outputs)} times in one forward pass")
        return outputs[0]

    def _tail(self, original: Callable[..., Any], output: Any) -> Tail:
        """Return the way from rows of hidden states to logits that the model itself goes."""

        def tail(rows: Tensor) -> Tensor:
            standing = _with_hidden_states(output, rows[None])  # (1, rows, d_model)
            ids = torch.zeros((1, len(rows)), dtype=torch.int64, device=rows.device)
            with _forward(self.body, lambda *args, **kwargs: standing):
                logits: Tensor = original(input_ids=ids).logits
            return logits[0]  # (rows, vocab)

        return tail


def causal_model(model: nn.Module) -> PreTrainedModel:
    """Take off every wrapper.

    Raises:
        TypeError: what is inside is no model of transformers.
    """
    inner, _ = unwrapped(model)
    base = getattr(inner, "get_base_model", None)
    inner = base() if base is not None else inner
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"{type(inner).__name__} is no model of transformers")
    return inner


def bodies(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules whose output the head may take, the likeliest first.

    Most classes call the body that transformers names; some (OPT) the decoder inside it.
    """
    named = [model.base_model, model.get_decoder()]
    different = {id(body): body for body in named if isinstance(body, nn.Module)}
    return [body for body in different.values() if body is not model]


@contextlib.contextmanager
def _forward(module: nn.Module, replacement: Callable[..., Any]) -> Iterator[None]:
    """Give one module another forward for a while; accelerate may have given it one already."""
    before = vars(module).get("forward")
    module.forward = replacement
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _hidden_states(output: Any) -> Tensor:
    hidden_states: Tensor = output[0]
    return hidden_states


def _with_hidden_states(output: Any, hidden_states: Tensor) -> Any:
    """Return an output of the same kind that holds hidden states and nothing else."""
    if isinstance(output, ModelOutput):
        return type(output)(last_hidden_state=hidden_states)
    return (hidden_states,)


def _total(
    tail: Tail, rows: Tensor, pieces: Iterable[tuple[Tensor, Tensor]], score: Score
) -> Tensor:
    """Return the sum over all rows, with its gradients formed on the way.

    Args:
        tail: rows of hidden states -> logits.
        rows: `(rows, d_model)`.
        pieces: the rows without history, in chunks, each with its labels.
        score: logits and labels -> a sum and its gradient.
    """
    if not torch.is_grad_enabled():
        return torch.stack([score(tail(piece), labels)[0] for piece, labels in pieces]).sum()
    totals, of_rows, of_head = [], [], _HeadGradients()
    for piece, labels in pieces:
        piece.requires_grad_(rows.requires_grad)
        logits = tail(piece)
        total, slope = score(logits.detach(), labels)
        totals.append(total)
        if logits.requires_grad:
            of_rows.append(of_head.add(logits, slope, piece))
    tensors, gradients = of_head.tensors, of_head.summed
    if rows.requires_grad:
        tensors, gradients = [rows, *tensors], [torch.cat(of_rows), *gradients]
    known: Tensor = _KnownGradients.apply(  # type: ignore[no-untyped-call]
        torch.stack(totals).sum(), gradients, *tensors
    )
    return known


class _HeadGradients:
    """The gradients of whatever trains in a head, summed over the chunks in float32."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.summed: list[Tensor] = []

    def add(self, logits: Tensor, slope: Tensor, piece: Tensor) -> Tensor:
        """Go backward from one chunk; return the gradient of its rows (empty if they need none)."""
        if not self.tensors:
            self.tensors = [leaf for leaf in _leaves(logits) if leaf is not piece]
        own = [piece] if piece.requires_grad else []
        gradients = torch.autograd.grad(logits, [*own, *self.tensors], slope)
        # float32, since a sum over many chunks in bfloat16 would lose what one product keeps; not
        # in place, since two tensors may have been given one gradient.
        wide = [gradient.float() for gradient in gradients[len(own) :]]
        pairs = zip(self.summed, wide, strict=True)
        self.summed = [before + new for before, new in pairs] if self.summed else wide
        return gradients[0] if own else piece.new_empty(0)


def _leaves(result: Tensor) -> list[Tensor]:
    """Return the tensors without a history that a result was computed from and that train."""
    waiting, seen, found = [result.grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
        waiting.extend(following for following, _ in node.next_functions)
    return found


class _KnownGradients(torch.autograd.Function):
    """A number whose gradients were computed together with it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> Any:
        scaled = [
            (gradient * scales[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, None, *scaled

"""What a row of a projection is for, told from behaviour alone.

A change of one output of one token's projection shows its role: that of a query moves only the
attention of this token, that of a key the attention of every token that looks at it, that of a
value no attention at all, but what the layer gives the others. Nothing of the model's source is
read, so a map of roles that a user gives for an unknown architecture can be checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltatune.bridges.attention_implementations import AttentionImplementations
from deltatune.bridges.start_checks import REFUSALS
from deltatune.errors import InputError
from deltatune.part import Rows
from deltatune.paths import components, first_index, matches_tail, shape_of_path
from deltatune.role_maps import ATTENTION_ROLES
from deltatune.sites import Site, Sites
from deltatune.training_mode import evaluating

__all__ = ["NotProbed", "check_given_roles", "check_roles", "probe_roles"]

# A change that vanishes beside large scores, in float32, is tried again with a larger one.
_CHANGES = (0.5, 8.0, 128.0)
_NUMBER_OF_TOKENS = 6


class NotProbed(InputError):
    """A model or a row whose role cannot be told by a probe; it may be right all the same."""


@dataclass(frozen=True)
class _Observed:
    """Attention probabilities of a layer, `(batch, n_heads, seq, seq)`, and what it puts out."""

    attention: Tensor
    output: Tensor  # (batch, seq, d_model)


@torch.no_grad()
def probe_roles(
    model: nn.Module,
    module: str,
    rows: Sequence[int],
    *,
    inputs: Mapping[str, Tensor] | None = None,
    token: int = _NUMBER_OF_TOKENS // 2,
) -> list[str]:
    """Tell the role of single output rows of a projection by what a change of them moves.

    Args:
        model: a transformers model without adapters; meanwhile its attention is computed eagerly
            and nothing is dropped.
        module: path of the projection, a linear layer inside a layer of the model.
        rows: numbers of its outputs.
        inputs: one example, for models that do not take token ids; six tokens by default.
        token: position whose output is changed; there must be others before and after it.

    Returns:
        For each row "query", "key" or "value", or "other" where no other token notices: a gate of
        the attention's output, a feed-forward block.

    Raises:
        NotProbed: no such module in a layer; a model that does not run on these inputs or gives no
            attention probabilities; a row whose change moves nothing.
    """
    if not isinstance(model, PreTrainedModel):
        raise NotProbed(f"{type(model).__name__} is no model of transformers: it cannot be probed")
    around = _modules_around(model, module)
    given = dict(inputs) if inputs is not None else _tokens(model)
    found = []
    with _eager(model):
        before = _observe(model, given, around)
        for row in rows:
            role = None
            for change in _CHANGES:
                with around[-1].register_forward_hook(_adding(change, token, row)):
                    after = _observe(model, given, around)
                if role not in ATTENTION_ROLES:  # in half precision others notice only large ones
                    role = _role(before, after, token) or role
            if role is None:
                raise NotProbed(
                    f"a change of row {row} of {module} at token {token} moves nothing: give "
                    f"inputs in which that token is seen"
                )
            found.append(role)
    return found


def check_roles(
    model: nn.Module, sites: Sites, *, inputs: Mapping[str, Tensor] | None = None
) -> None:
    """Check every query, key and value of a first layer against what their rows do.

    Three rows of each are probed: the first, the middle and the last. Worth a call after a map of
    roles for an architecture that has no row, above all for a fused layout.

    Args:
        model: that the sites belong to.
        sites: with the roles to check.
        inputs: see `probe_roles`.

    Raises:
        InputError: a row that acts as another role than its site says; see also `probe_roles`.
    """
    for site in _first_of_each(sites.with_roles(*ATTENTION_ROLES)):
        _check_site(model, site, inputs)


def check_given_roles(model: nn.Module, sites: Sites, patterns: Iterable[str]) -> None:
    """Check what a user's map of roles says, where a probe can tell; a few short passes.

    State spaces and linear attention have no attention probabilities, and other models do not run
    on tokens alone: there the user's word is taken.

    Args:
        model: that the sites belong to.
        sites: with the roles to check.
        patterns: of modules, the keys of the map.

    Raises:
        InputError: a row that acts as another role than the map says.
    """
    given = tuple(patterns)
    attention = [site for site in sites.values() if site.role in ATTENTION_ROLES]
    named = [site for site in attention if any(matches_tail(p, site.module) for p in given)]
    for site in _first_of_each(named):
        with suppress(NotProbed):
            _check_site(model, site, None)


def _first_of_each(sites: Iterable[Site]) -> list[Site]:
    """Return one site for each projection and role: that of the first layer that has it."""
    first: dict[str, Site] = {}
    for site in sites:
        first.setdefault(f"{shape_of_path(site.module)}:{site.role}", site)
    return list(first.values())


def _check_site(model: nn.Module, site: Site, inputs: Mapping[str, Tensor] | None) -> None:
    rows = _three_rows(site)
    for row, role in zip(rows, probe_roles(model, site.module, rows, inputs=inputs), strict=True):
        if role != site.role:
            raise InputError(
                f"row {row} of {site.module} is named {site.role}, but acts as {role}: correct "
                f"the map of roles"
            )


def _three_rows(site: Site) -> list[int]:
    rows = site.part.indices if isinstance(site.part, Rows) else torch.arange(site.out_features)
    return [int(rows[0]), int(rows[len(rows) // 2]), int(rows[-1])]


def _role(before: _Observed, after: _Observed, token: int) -> str | None:
    queries = (before.attention != after.attention).any(-1).any(1).any(0)  # (seq,)
    if queries.any():
        return "query" if queries.nonzero().flatten().tolist() == [token] else "key"
    tokens = (before.output != after.output).any(-1).any(0)  # (seq,)
    if not tokens.any():
        return None
    return "other" if tokens.nonzero().flatten().tolist() == [token] else "value"


def _adding(change: float, token: int, row: int) -> Any:
    def add(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[..., token, row] += change
        return changed

    return add


def _modules_around(model: nn.Module, module: str) -> list[nn.Module]:
    """Return the layer that holds a projection, all modules on the way to it, and itself."""
    path = components(module)
    depth = first_index(path)
    projection = dict(model.named_modules()).get(module)
    weight = getattr(projection, "weight", None)
    if depth is None or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise NotProbed(
            f"{module!r} is no linear layer inside a layer of the model, so its rows cannot be "
            f"probed: give the path of a projection"
        )
    ends = range(depth + 1, len(path) + 1)
    return [model.get_submodule(".".join(path[:end])) for end in ends]


def _observe(
    model: nn.Module, inputs: Mapping[str, Tensor], around: Sequence[nn.Module]
) -> _Observed:
    """Run the model and keep what the modules around a projection put out, innermost first."""
    seen: list[tuple[Any, ...]] = []

    def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
        seen.append((output,) if isinstance(output, Tensor) else tuple(output))

    with ExitStack() as hooks:
        for module in around[:-1]:
            hooks.enter_context(module.register_forward_hook(keep))
        try:
            outputs = model(**inputs, output_attentions=True)
        except REFUSALS as error:
            raise NotProbed(
                f"{type(model).__name__} does not run on {', '.join(inputs)} "
                f"({' '.join(str(error).split())[:120]}): give one example as inputs"
            ) from error
    known = {id(one) for one in getattr(outputs, "attentions", None) or ()}
    for one in (tensor for output in seen for tensor in output if id(tensor) in known):
        if _are_probabilities(one):
            return _Observed(one, seen[-1][0])
    raise NotProbed(
        f"{type(model).__name__} gives no attention probabilities of this layer, so its rows "
        f"cannot be told apart: where it has an encoder and a decoder, probe each by itself"
    )


def _are_probabilities(attention: Any) -> bool:
    """Tell attention from the states that linear attention returns in its place."""
    if not isinstance(attention, Tensor) or attention.ndim != 4:
        return False
    # An attention sink takes a share that is in no column; a half precision sum is not exact.
    return bool((attention >= 0).all() and (attention.float().sum(-1) <= 1.01).all())


def _tokens(model: nn.Module) -> dict[str, Tensor]:
    untyped: Any = model
    on = next(model.parameters()).device
    number = getattr(untyped.config.get_text_config(), "vocab_size", None)
    if number is None:
        raise NotProbed(f"{type(model).__name__} reads no tokens: give one example as inputs")
    # Spread over the vocabulary, away from the special tokens at its start.
    ids = torch.linspace(number // 4, number - 1, _NUMBER_OF_TOKENS, device=on).long()
    return {"input_ids": ids[None]}


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Compute attention so that its probabilities exist, in evaluation mode."""
    untyped: Any = model
    before = AttentionImplementations(model)
    with evaluating(model):
        try:
            untyped.set_attn_implementation("eager")
            yield
        finally:
            before.restore()

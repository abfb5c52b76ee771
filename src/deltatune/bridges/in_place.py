"""Base weights that train themselves, whole or by the rows of one role of a fused weight.

Rows of a fused weight cannot be frozen by their gradients: under Adam a zero gradient still lets
momentum and decay move them, and a scaled one changes nothing. So the weight is cut into one
parameter per role, put together again in the forward pass, and those that stay get no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deltatune.errors import NotComposable
from deltatune.part import Rows, Selection, Whole
from deltatune.sites import Site, Sites, split
from deltatune.stored_weights import StoredForm

__all__ = ["merged_state", "prepare_in_place", "restore"]


@dataclass(frozen=True)
class _Piece:
    """Some rows of a fused weight: their role, and whether they train."""

    role: str
    rows: Tensor
    trains: bool


class FusedRows(nn.Module):
    """Puts a fused weight or bias together from the rows of its roles.

    Args:
        roles: role of each piece, in order.
        rows: of each piece its rows in the fused tensor, counted on the output side.
        form: how the tensor is stored.
    """

    def __init__(self, roles: Sequence[str], rows: Sequence[Tensor], form: StoredForm) -> None:
        """Remember the order of the rows."""
        super().__init__()
        self.roles = tuple(roles)
        self.form = form
        self.axis = form.axis_of_outputs
        self.lengths = [piece.numel() for piece in rows]
        order = torch.cat(list(rows))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)

    def forward(self, *pieces: Tensor) -> Tensor:
        """Return the fused tensor in the form in which it is stored."""
        joined = torch.cat(pieces, dim=self.axis)
        return self.form.stored(joined.index_select(self.axis, self.get_buffer("inverse")))

    def right_inverse(self, fused: Tensor) -> list[Tensor]:
        """Cut the fused tensor into its pieces."""
        ordered = self.form.flat(fused).index_select(self.axis, self.get_buffer("order"))
        pieces: tuple[Tensor, ...] = torch.split_with_sizes(ordered, self.lengths, dim=self.axis)
        return [piece.clone() for piece in pieces]


def prepare_in_place(model: nn.Module, sites: Sites, selection: Selection) -> nn.Module:
    """Let the selected base weights train and freeze all others.

    The bias of a selected place trains with its weight. A weight of which only some rows are
    selected is cut by a registered parametrisation into one parameter per role.

    Args:
        model: the plain model; it is changed and returned.
        sites: of the model.
        selection: weight name -> `Whole` or `Rows`.

    Raises:
        NotComposable: a selection of single columns or entries, or a quantised weight.
    """
    model.requires_grad_(False)
    for weight, part in selection.items():
        if not isinstance(part, (Whole, Rows)):
            raise NotComposable(
                f"in-place training moves whole rows, but the selection takes "
                f"{type(part).__name__.lower()} of {weight}: use a delta with this selection"
            )
        found = sites.at_weight(weight)
        selected = dict(_rows_by_site(sites, weight, part))
        for name, pieces in _pieces_by_parameter(found, selected):
            module, parameter = _owner(model, name)
            dtype = getattr(module, parameter).dtype
            if not dtype.is_floating_point:
                raise NotComposable(
                    f"{name} is quantised ({dtype}), and in-place training needs numbers that can "
                    f"move: use a delta, or load the base without quantisation"
                )
            _let_train(module, parameter, pieces, found[0])
    return model


def restore(model: nn.Module) -> nn.Module:
    """Put every cut weight together again, as a plain frozen parameter of its module.

    The model keeps the trained values and has the names that it had before.
    """
    for module, names in list(_cut_parameters(model)):
        for name in names:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            getattr(module, name).requires_grad_(False)
    return model


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of the model under the names of the plain one, cut weights put together."""
    cut = {module: names for module, names in _cut_parameters(model)}
    state: dict[str, Tensor] = {}
    pieces: list[str] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name in cut.get(module, ()):
            state[prefix + name] = getattr(module, name).detach()
            pieces.append(f"{prefix}parametrizations.{name}.")
    # The base may have parametrisations of its own, such as a weight norm: their tensors stay.
    for name, tensor in model.state_dict().items():
        if not name.startswith(tuple(pieces)):
            state[name] = tensor
    return state


def _rows_by_site(sites: Sites, weight: str, part: Whole | Rows) -> list[tuple[str, Tensor]]:
    """Return the selected rows of each site of a weight, counted in the weight."""
    selected = []
    for site, cut in split(sites, weight, part):
        rows = _rows_of(site)
        selected.append((site.name, rows[cut.indices] if isinstance(cut, Rows) else rows))
    return selected


def _rows_of(site: Site) -> Tensor:
    return site.part.indices if isinstance(site.part, Rows) else torch.arange(site.out_features)


def _pieces(found: Sequence[Site], selected: dict[str, Tensor]) -> list[_Piece]:
    """Cut the rows of every site into those that train and those that stay."""
    pieces = []
    for site in found:
        rows = _rows_of(site)
        pieces += _cut(site.role, rows, _trains(rows, selected.get(site.name)))
    return pieces


def _trains(rows: Tensor, selected: Tensor | None) -> Tensor:
    return torch.isin(rows, rows.new_empty(0) if selected is None else selected)


def _cut(role: str, rows: Tensor, trains: Tensor) -> list[_Piece]:
    """Cut the rows of one role into those that train and those that stay."""
    both = (_Piece(role, rows[trains], True), _Piece(role, rows[~trains], False))
    return [piece for piece in both if piece.rows.numel()]


def _pieces_by_parameter(
    found: Sequence[Site], selected: dict[str, Tensor]
) -> Iterator[tuple[str, list[_Piece]]]:
    """Yield the weight and each bias of the sites of one weight, with their pieces."""
    pieces = _pieces(found, selected)
    yield found[0].weight, pieces
    if found[0].bias is not None and all(site.bias == found[0].bias for site in found):
        yield found[0].bias, pieces
        return
    # A fused weight whose roles have a bias each, or none: DeBERTa's `q_bias` and `v_bias`.
    for site in found:
        if site.bias is not None:
            trains = _trains(_rows_of(site), selected.get(site.name))
            yield site.bias, _cut(site.role, torch.arange(site.out_features), trains)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, parameter = name.rpartition(".")
    return model.get_submodule(path), parameter


def _let_train(module: nn.Module, name: str, pieces: Sequence[_Piece], site: Site) -> None:
    if not any(piece.trains for piece in pieces):
        return
    # All roles of a fused weight are separate parameters even when all train: each has its rate.
    if len(pieces) == 1:
        getattr(module, name).requires_grad_(True)
        return
    roles, rows = [piece.role for piece in pieces], [piece.rows for piece in pieces]
    fused = getattr(module, name)
    form = StoredForm(tuple(fused.shape), site.transposed, site.experts)
    joiner = FusedRows(roles, [piece.to(fused.device) for piece in rows], form)
    parametrize.register_parametrization(module, name, joiner, unsafe=True)
    originals = module.get_submodule(f"parametrizations.{name}")
    for i, piece in enumerate(pieces):
        originals.get_parameter(f"original{i}").requires_grad_(piece.trains)


def _cut_parameters(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    found = []
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        lists = module.get_submodule("parametrizations").named_children()
        names = [name for name, lst in lists if isinstance(lst.get_submodule("0"), FusedRows)]
        found.append((module, names))
    return found

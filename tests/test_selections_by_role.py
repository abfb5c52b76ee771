"""Roles that a model does not have, and the recipe that asks for all of them."""

from __future__ import annotations

from typing import Any

import pytest

from deltatune import sites
from deltatune.errors import InputError
from deltatune.recipe import named
from deltatune.selections.by_role import ByRole
from tests.models import NAMES


def test_by_role_passes_over_absent_roles_only_when_asked_and_one_is_there(tiny: Any) -> None:
    model = tiny("gpt2")
    found = sites.of(model)
    chosen = ByRole(roles=("gate", "up"), allow_absent=True)(model, found)
    assert chosen == ByRole(roles=("up",))(model, found)
    with pytest.raises(InputError, match="role 'gate' is not known"):
        ByRole(roles=("gate", "up"))(model, found)
    with pytest.raises(InputError, match="role 'gate' is not known"):
        ByRole(roles=("gate",), allow_absent=True)(model, found)


@pytest.mark.parametrize("name", NAMES)
def test_full_recipe_reaches_every_projection_of_every_architecture(name: str, tiny: Any) -> None:
    model = tiny(name)
    found = sites.of(model)
    projections = {site.weight for site in found.values() if site.role in sites.PROJECTIONS}
    assert set(named("full").selection(model, found)) == projections

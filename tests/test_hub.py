"""Names that are looked up on the hub, where it does not answer."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest

from deltatune.base import locate
from deltatune.errors import InputError


@pytest.fixture
def knocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked, of which none answers."""
    asked: list[str] = []

    def unreachable(address: str, **_: Any) -> None:
        asked.append(address)
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    return asked


def test_model_name_is_asked_for_once_when_the_hub_does_not_answer(knocks: list[str]) -> None:
    with pytest.raises(
        InputError, match=r"a model that can be fetched: https://.* not answer; check"
    ):
        locate("nobody/nothing")
    assert [address.rpartition("/api/")[2] for address in knocks] == ["models/nobody/nothing"]


@pytest.mark.parametrize("name", ["a model", "x" * 300, "owner/..name"])
def test_what_cannot_be_a_name_is_refused_without_asking(name: str, knocks: list[str]) -> None:
    with pytest.raises(InputError, match="neither a folder here nor the name of a model"):
        locate(name)
    assert not knocks

"""How the texts of options are read."""

from __future__ import annotations

import pytest

from deltatune.cli_options import swept
from deltatune.errors import InputError


def test_swept_values_are_numbers_where_they_look_like_some():
    given = ["optimizer.learning_rate=1e-3, 0.01,1e-1", "delta.rank=2,4", "host=lora,dora"]
    assert swept(given) == {
        "optimizer.learning_rate": [1e-3, 0.01, 0.1],
        "delta.rank": [2, 4],
        "host": ["lora", "dora"],
    }
    assert swept(None) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [("delta.rank", "'delta.rank' has no '='"), ("delta.rank=[1", "value that is not readable")],
)
def test_swept_refuses_what_it_cannot_read(given, message):
    with pytest.raises(InputError, match=message):
        swept([given])


def test_swept_refuses_one_field_twice():
    with pytest.raises(InputError, match="one field twice"):
        swept(["delta.rank=1,2", "delta.rank=4"])

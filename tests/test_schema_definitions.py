from __future__ import annotations

import json
import re

import pytest

from deltatune.recipe import json_schema
from deltatune.schema_definitions import gathered


def test_every_reference_of_the_recipe_schema_leads_somewhere() -> None:
    schema = json_schema()
    named = re.findall(r'"\$ref": "#/\$defs/([^"]*)"', json.dumps(schema))
    assert {"ByDepth", "Phase"} <= set(named) == set(schema["$defs"])
    assert json.dumps(schema).count('"$defs"') == 1


def test_definitions_of_the_same_name_must_be_alike() -> None:
    one, other = {"$defs": {"A": {"type": "string"}}}, {"$defs": {"A": {"type": "number"}}}
    assert gathered({"oneOf": [one, one]}) == {"oneOf": [{}, {}], "$defs": one["$defs"]}
    with pytest.raises(ValueError, match=r"two parts define A differently"):
        gathered({"oneOf": [one, other]})


def test_schema_without_definitions_stays_as_it_is() -> None:
    assert gathered({"type": "object", "oneOf": [{"type": "string"}, True]}) == {
        "type": "object",
        "oneOf": [{"type": "string"}, True],
    }

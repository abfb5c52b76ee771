"""Where a JSON Schema keeps what it refers to: at its root, as the references say."""

from __future__ import annotations

from typing import Any

__all__ = ["gathered"]

KEY = "$defs"


def gathered(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose parts were made one by one, with the definitions of all at its root.

    A part refers to `#/$defs/NAME` of its own root, which is none once the part lies within another
    schema.

    Raises:
        ValueError: two parts define one name differently.
    """
    definitions: dict[str, Any] = {}
    whole = _without(schema, definitions)
    return {**whole, KEY: definitions} if definitions else dict(whole)


def _without(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_without(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    for name, own in value.get(KEY, {}).items():
        if definitions.setdefault(name, own) != own:
            raise ValueError(f"two parts define {name} differently: give one of them another name")
    return {key: _without(item, definitions) for key, item in value.items() if key != KEY}

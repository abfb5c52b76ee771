"""What the README says is what the code does."""

import re
from pathlib import Path

import pytest

from deltatune import readme_tables
from deltatune.errors import InputError

README = Path(__file__).parents[1] / "README.md"


def test_readme_tables_are_what_the_code_declares():
    text = README.read_text(encoding="utf-8")
    assert readme_tables.filled(text, README.parent) == text, "run 'make table'"
    assert "| efficientft |" in text


def test_table_needs_its_markers():
    with pytest.raises(InputError, match="has no line"):
        readme_tables.filled("no markers here", README.parent)
    with pytest.raises(InputError, match="has no line '<!-- /tasks -->' behind"):
        readme_tables.filled(
            "<!-- tasks: made by make table, checked by the tests -->", README.parent
        )


def test_readme_s_composed_recipe_is_one():
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    composed = next(block for block in blocks if "recipe = Recipe(" in block)
    names: dict = {}
    exec(compile(composed, "README.md", "exec"), names)
    assert names["recipe"].to_plain()["update"]["kind"] == "chain"


def test_readme_s_first_lines_name_what_exists():
    import deltatune

    text = README.read_text(encoding="utf-8")
    for name in set(re.findall(r"deltatune\.([a-z_A-Z]+)\(", text)):
        assert name in deltatune.__all__, name

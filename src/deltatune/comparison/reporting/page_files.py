"""Pages of one file: a template, styles and scripts put together without any network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # it has no annotations

__all__ = ["rendered"]


def rendered(package: str, template: str, scripts: Sequence[str], **given: Any) -> str:
    """Return a page; every text that is given to it is escaped.

    Files are looked for in the package of the page, then here, where looks and tables lie that all
    pages share.

    Args:
        package: name of the page's own package.
        template: name of the file.
        scripts: names of the files, in order.
        given: what the template draws.
    """

    def file(name: str) -> str:
        own = resources.files(package).joinpath(name)
        found = own if own.is_file() else resources.files(__package__).joinpath(name)
        return found.read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        # Our own files and plotly's hold no text of a user and go in as they are.
        style=Markup(file("page.css")),
        scripts=[Markup(file(name)) for name in scripts],
        plotly=Markup(get_plotlyjs()),
        **given,
    )

"""Renders self-contained HTML pages: style, inline plots and number formats."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from traces.plots import COLOURS


def render(template: str, *loaders: BaseLoader, **values: Any) -> str:
    """Renders a template, which is searched in ``loaders`` and then in the folder of this module."""
    environment = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("traces", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number}
    return environment.get_template(template).render(colours=COLOURS, **values)


def inline(svg: str) -> Markup:
    """Converts an SVG to a part of HTML: without prolog, namespaces and size, and with the page's theme colours."""
    svg = svg[svg.index("<svg") :]
    svg = (
        re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", svg.split(">", 1)[0]) + ">" + svg.split(">", 1)[1]
    )
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg)


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"

"""What all pages have in common: one self-contained HTML file, its style, its plots, its way to write numbers."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from traces.plots import COLOURS


def render(template: str, *loaders: BaseLoader, **values: Any) -> str:
    """The page of a template, which is looked for in ``loaders`` and then beside this file, where the style lies."""
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
    """An SVG as a part of HTML: no prolog and namespaces, width from the page, colours that follow its theme."""
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

"""A run, or several, on one page: HTML that needs nothing but itself. Strings from strangers are escaped by the template library, and what in
them can't be seen is shown.

The page forbids itself scripts and any address (Content-Security-Policy), so that what slips through does nothing.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from elbocli.cli.commands import visible_lines
from elbocli.report.drawing import swatch
from elbocli.report.facts import Comparison, RunFacts, headline
from elbocli.report.plots import pictures, pictures_of_several
from elbocli.report.results import protocol_of, score_rows
from elbocli.report.thumbnails import Thumbnails


def render(facts: RunFacts) -> str:
    """The page of a run. Same facts, same text."""
    return _filled("page.html", facts=facts, pictures=pictures(facts), headline=headline(facts))


def render_several(found: Comparison) -> str:
    """The page of several runs. Same facts, same text."""
    swatches = [swatch(index) for index in range(len(found.runs))]
    return _filled("several.html", found=found, pictures=pictures_of_several(found), swatches=swatches)


def _filled(name: str, **values: Any) -> str:
    """A template with those values in it."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number, error=error, source=source, svg=Markup, rows=score_rows, protocol=protocol_of
    )
    return visible_lines(environment.get_template(name).render(**values))


def number(value: Any) -> str:
    """A number for people: 4 significant digits, whole ones with thousands apart; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")
    return _minus(f"{value:.4g}")


def error(value: float) -> str:
    """An error for people: 2 significant digits."""
    return _minus(f"{value:.2g}")


def _minus(text: str) -> str:
    """2.3e-05 → 2.3e−5."""
    return re.sub(r"e([+-])0*", r"e\1", text).replace("e+", "e").replace("-", "\u2212")


def source(strip: Thumbnails) -> str:
    """A row of pictures as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(strip.png).decode()

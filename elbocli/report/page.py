"""A run on one page: HTML that needs nothing but itself. Strings from strangers are escaped by the template library.

The page forbids itself scripts and any address (Content-Security-Policy), so that what slips through does nothing.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from elbocli.report.facts import RunFacts
from elbocli.report.plots import pictures
from elbocli.report.results import score_rows
from elbocli.report.thumbnails import Thumbnails

LARGEST = 8 << 20
"""Bytes, which no page exceeds: pictures are counted and of bounded size, curves have bounded numbers of points."""

TWICE = ", ± {} (2 standard errors)"


def render(facts: RunFacts) -> str:
    """The page. Same facts, same text."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, error=error, source=source, svg=Markup, rows=score_rows)
    template = environment.get_template("page.html")
    return template.render(facts=facts, pictures=pictures(facts), headline=_headline(facts))


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


def _headline(facts: RunFacts) -> list[tuple[str, str, str]]:
    """The few numbers that come first: (what, value, detail)."""
    found, nats, bits = [], "nats per dimension", "bits per dimension"
    curves = {
        "loss": ("training loss", nats),
        "val_loss": ("validation loss", nats),
        "val_bpd": ("validation bound", bits),
    }
    for name, (what, unit) in curves.items():
        value, se = facts.last(name), facts.last(f"{name}_se")
        if value is not None:
            found.append((what, number(value), unit + (TWICE.format(error(2 * se)) if se is not None else "")))
    for bound in facts.bounds[-1:]:
        detail = bits + TWICE.format(error(2 * bound.found.bpd_se))
        found.append(("variational bound", number(bound.found.bpd), detail))
    for result in facts.scores[-1:]:
        for row in score_rows(result.found)[:2]:
            detail = f", ± {error(row.spread)} ({row.spread_is})" if row.spread is not None else ""
            found.append((row.name, number(row.value), (row.network or result.path.name) + detail))
    return found

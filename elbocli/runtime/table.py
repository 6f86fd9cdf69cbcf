"""Tables for people: text on a terminal, HTML in a notebook."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import NamedTuple

GAP = "  "  # between columns
MOST_DECIMALS = 6  # numbers with more decimals are written with an exponent


def printable(text: str) -> str:
    """Escape control characters and line breaks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def rounded(value: float, se: float | None = None, shown: bool = True) -> str:
    """Format a number with two digits of its standard error, or with five significant digits if the error is unknown or 0.

    shown: whether to append ± and the standard error.
    """
    if not se or not math.isfinite(se):
        return f"{value:.5g}"
    decimals = 1 - math.floor(math.log10(float(f"{se:.1e}")))
    if decimals > MOST_DECIMALS:
        numbers = f"{value:.2e}", f"{se:.1e}"
    else:
        numbers = f"{round(value, decimals) + 0.0:.{max(decimals, 0)}f}", f"{round(se, decimals):.{max(decimals, 0)}f}"
    return " ± ".join(numbers) if shown else numbers[0]


def cell(value: object) -> str:
    """Format a value for a table: None, a bool, a number, text, an interval [low, high], or a tuple (number, standard error)."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return cell(value[0]) if value[0] is None else rounded(*value)
    if isinstance(value, list):
        low, high = value
        return " to ".join(rounded(limit, (high - low) / 4, shown=False) for limit in value)  # 95 % are 4 standard errors
    if isinstance(value, float):
        return rounded(value)
    return "-" if value in (None, "") else f"{value:,}" if isinstance(value, int) else printable(str(value))


class Table(NamedTuple):
    """Result for people.

    heads: headings of the columns. rows: values as `cell` takes them; the first column has the names of the rows.
    facts: name → value, shown below the rows; those that are None are left out. notes: sentences, shown last.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    facts: Mapping[str, object] = {}
    notes: Sequence[str] = ()

    @property
    def cells(self) -> list[list[str]]:
        """Headings and rows as text."""
        return [[*self.heads], *([*map(cell, row)] for row in self.rows)] if self.rows else []

    @property
    def shown_facts(self) -> list[list[str]]:
        return [[name, cell(value)] for name, value in self.facts.items() if value not in (None, "")]

    def text(self, width: int) -> str:
        """Return the table as lines of at most `width` characters, where words and columns allow this."""
        facts = self.shown_facts
        indent = max((len(name) for name, _ in facts), default=0) + len(GAP)
        parts = [wrap(printable(self.title), width), [*aligned(self.cells, width)]]
        parts.append([line for name, text in facts for line in _hanging(f"{name:<{indent}}", text, width)])
        parts += [_hanging("", printable(note), width) for note in self.notes]
        return "\n".join("\n".join(part) + "\n" for part in parts if part)

    def _repr_html_(self) -> str:
        head, *rows = self.cells or [[]]
        body = [*rows, *self.shown_facts]
        lines = [f"<caption>{escape(printable(self.title))}</caption>", _html_row(head, "th"), *(_html_row(row) for row in body)]
        return f"<table>{''.join(lines)}</table>" + "".join(f"<p>{escape(printable(note))}</p>" for note in self.notes)


def aligned(rows: Sequence[Sequence[str]], width: float = math.inf) -> Iterator[str]:
    """Yield lines of aligned columns. Columns beyond `width` follow below the others, beside the first column again."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    blocks = [[0]]
    used = 0
    for column, size in enumerate(widths[1:], 1):
        if used and widths[0] + used + len(GAP) + size > width:
            blocks.append([0])
            used = 0
        blocks[-1].append(column)
        used += len(GAP) + size
    for number, block in enumerate(blocks):
        if number:
            yield ""
        for row in rows:
            yield GAP.join(f"{row[column]:<{widths[column]}}" for column in block).rstrip()


def _hanging(label: str, text: str, width: int) -> list[str]:
    return wrap(text, max(width, 40), initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False)


def _html_row(cells: Sequence[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in cells)}</tr>" if cells else ""

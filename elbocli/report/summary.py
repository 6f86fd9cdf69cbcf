"""Main results of one run, and of several runs side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elbocli.core.estimate import Estimate
from elbocli.report.gather import RunFacts
from elbocli.report.log_history import Curve, curve, error_of, score_columns
from elbocli.report.results import ResultFile, Row, score_rows

DIGEST = 12  # hex digits of a digest on the page
NATS = "nats per dimension"
BITS = "bits per dimension"
CURVES = {
    "loss": ("training loss", NATS),
    "val_loss": ("validation loss", NATS),
    "val_bpd": ("variational bound", f"{BITS}, validation images"),
}


def logged(facts: RunFacts) -> list[Row]:
    """Return the last losses, scores and bound of a run."""
    curves = facts.curves
    scores = {name: (title, "while training") for name, title in score_columns(curves).items()}
    rows = [_last_row(curves, name, *heads) for name, heads in (CURVES | scores).items() if curve(curves, name)[1]]
    return rows + [_bound_row(file, facts.trains_on(file)) for file in facts.results["bound"][-1:]]


def _last_row(curves: dict[str, Curve], name: str, title: str, unit: str) -> Row:
    values, errors = (curve(curves, key)[1] for key in (name, error_of(name)))
    last = Estimate(values[-1], *errors[-1:])
    return Row(title, unit, last.value, interval=last.interval)


def _bound_row(file: ResultFile, trains_on: bool) -> Row:
    bound = Estimate(*file.record.per_dimension)
    unit = ", ".join([file.record.unit, *Path(str(file.content.get("dataset", ""))).parts[-1:]])
    return Row("variational bound", unit, bound.value, note="on training images" * trains_on, interval=bound.interval)


def headline(facts: RunFacts) -> list[Row]:
    """Return the main results of a run for the top of its report."""
    scores = [(row, file) for file in facts.results["scores"][-1:] for row in score_rows(file.record)[:2]]
    return logged(facts) + [row._replace(unit=row.unit or file.path.name) for row, file in scores]


def table(columns: Sequence[dict[Any, Any]]) -> dict[Any, list[Any]]:
    """Merge dicts: key → list with a value per dict; None: the dict lacks the key."""
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name) for column in columns] for name in names}


def differences(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs: name → value in each run."""
    columns = [
        {
            **facts.settings.written(),
            "data": facts.data.get("path"),
            "images": facts.trained_on,
            "data sha256": str(facts.data.get("payload_sha256"))[:DIGEST],
            **{f"network {key}": value for key, value in facts.network.items()},
        }
        for facts in runs
    ]
    return {name: values for name, values in table(columns).items() if any(value != values[0] for value in values)}


def figures(runs: Sequence[RunFacts]) -> dict[tuple[str, str], list[Row | None]]:
    """Return the main results: (name, unit) → a Row per run; None: no such result."""
    return table([{(row.name, row.unit): row for row in headline(facts)} for facts in runs])

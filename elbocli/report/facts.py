"""Gather the facts and figures of a run, and compare several runs, for a page or as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from elbocli.core.adaptive import ErrorMoments
from elbocli.core.optimum import Copying, Excess
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.files.latents import ATTRIBUTES
from elbocli.report.log_history import LogHistory, Numbers, curve
from elbocli.report.result import (
    CommandReport,
    ComparisonReport,
    ErrorMap,
    ObjectiveReport,
    RunReport,
    ShownSamples,
    Term,
)
from elbocli.report.results import ResultFile, score_rows
from elbocli.report.thumbnails import Extremes, Thumbnails
from elbocli.run.folder import RunStatus
from elbocli.run.open import EffectiveWeighting
from elbocli.run.train_settings import TrainSettings

DIGITS = 6
"""Significant ones, of numbers on a map."""
DIGEST = 12
"""Digits of a digest that are shown: enough to tell two apart."""
NATS, BITS = "nats per dimension", "bits per dimension"
CURVES = {
    "loss": ("training loss", NATS),
    "val_loss": ("validation loss", NATS),
    "val_bpd": ("validation bound", BITS),
}
TWICE = "2 standard errors"


@dataclass(frozen=True)
class RunExcess:
    """Errors over the least ones, in the bins of the run's log.

    own: of training, its last fifth; new: of images held out. own_excess, new_excess: their excess of the run's own loss,
    in nats for each dimension. copies: None without images held out.
    """

    least: Tensor
    own: ErrorMoments
    new: ErrorMoments | None
    own_excess: Excess
    new_excess: Excess | None
    copies: Copying | None

    @property
    def verdict(self) -> str:
        """Whether the network copies, in a sentence."""
        if self.copies is None:
            return "Whether it copies can't be said without images held out (elbo train --val)."
        return f"The network {self.copies.verdict}: {self.copies.share:.2f} ± {2 * self.copies.se:.2g} of 1."

    def json(self) -> dict[str, Any]:
        """Its numbers, and the curves by bin."""
        shown = {"training": self.own_excess, "held_out": self.new_excess}
        sums = {key: {"nats_per_dimension": each.value, "se": each.se} for key, each in shown.items() if each}
        copies = self.copies and {"share": self.copies.share, "se": self.copies.se, "verdict": self.copies.verdict}
        return {"excess": sums, "copying": copies, "edges": self.own.edges.tolist(), "least": self.least.tolist()}


@dataclass(frozen=True)
class ObjectiveFacts:
    """The objective of training: weighting and schedule (None: it adapts) on logsnr low to high, and whether that is an ELBO.

    rising: where the weighting rises. effective: the weighting over time; one entry where it is fixed.
    """

    weighting: Weighting
    schedule: Schedule | None
    low: float
    high: float
    rising: list[tuple[float, float]]
    verdict: str
    terms: list[Term]
    effective: list[EffectiveWeighting]

    def report(self) -> ObjectiveReport:
        """It by specs and numbers."""
        return ObjectiveReport(
            weighting=self.weighting.spec,
            monotone=not self.rising,
            rising=[list(stretch) for stretch in self.rising],
            verdict=self.verdict,
            logsnr=[self.low, self.high],
            over_time=[each.json() for each in self.effective] if self.weighting.learned else None,
            terms=self.terms,
        )


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder shows it. None, or empty, is what isn't there; `missing` says so in sentences.

    source: where an imported run came from, as config.yaml says; empty for one that elbo trained, as all of `settings` is
    known of that. known: the settings that are.

    data, network: as config.yaml has them, and the network's parameters. environment: what config.yaml says of its last start, its speed, and the newest checkpoint. course,
    held_out: errors of training and validation. results: by the names of RESULTS. drawn: samples by class, which come from the file `drawn_from`.
    """

    run: str
    status: RunStatus | None
    settings: TrainSettings
    known: dict[str, Any]
    source: dict[str, Any]
    data: dict[str, Any]
    network: dict[str, Any]
    environment: dict[str, Any]
    objective: ObjectiveFacts | None
    curves: dict[str, Numbers]
    course: LogHistory | None
    held_out: LogHistory | None
    previews: list[Thumbnails]
    drawn: list[Thumbnails]
    drawn_from: str
    results: dict[str, list[ResultFile]]
    excess: RunExcess | None
    extremes: list[Extremes]
    commands: list[CommandReport]
    missing: list[str]

    @property
    def trained_on(self) -> Any:
        """Number of images: those held out for validation are none of them."""
        count = self.data.get("count", "?")
        return count - self.settings.val_split if isinstance(count, int) else count

    def trains_on(self, result: ResultFile) -> bool:
        """Tell whether a result is of the dataset that the run was trained on."""
        known = self.data.get("payload_sha256")
        return known is not None and result.content.get("payload_sha256") == known

    @property
    def subject(self) -> str:
        """The kind of images that it was trained to denoise."""
        side = self.data.get("image_size", "?")
        kind = "latents" if ATTRIBUTES["convention"] in self.data else "pixels"
        classes = self.network.get("num_classes", 0)
        return f"{side} × {side} {kind}" + (f" in {classes} classes" if classes else "")

    def last(self, name: str) -> float | None:
        """The last value of a curve."""
        values = curve(self.curves, name)[1]
        return values[-1] if values else None

    def report(self) -> RunReport:
        """All of it but the pictures; numbers that JSON doesn't have are None."""
        return RunReport(
            run=self.run,
            status=finite({} if self.status is None else {**self.status.facts(), "time": self.status.when}),
            objective=None if self.objective is None else self.objective.report(),
            settings=finite(self.known),
            source=finite(self.source) or None,
            data=finite(self.data),
            network=finite(self.network),
            environment=finite(self.environment),
            curves=finite(self.curves),
            errors=_map(self.course),
            validation_errors=_map(self.held_out),
            previews=[row.name for row in self.previews],
            samples=ShownSamples(self.drawn_from, [row.name for row in self.drawn]),
            excess=finite(self.excess and self.excess.json()),
            per_image=[str(each.path) for each in self.extremes],
            commands=self.commands,
            missing=self.missing,
            **{
                name: [{"file": str(each.path), **finite(each.content)} for each in results]
                for name, results in self.results.items()
            },
        )


def finite(value: Any) -> Any:
    """Turn numbers that JSON doesn't have into None, however deep."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _map(course: LogHistory | None) -> ErrorMap | None:
    if course is None:
        return None
    maps = {"eps_mse": course.error.tolist(), "density": course.density.tolist()}
    rounded = {key: [[float(f"{v:.{DIGITS}g}") for v in row] for row in rows] for key, rows in maps.items()}
    return ErrorMap(course.edges.tolist(), course.images, **finite(rounded))


class Figure(NamedTuple):
    """A number: what it is and its unit, or the network that it is by; with its spread, if it has one, and what that is.

    note: on the images that it is of.
    """

    what: str
    unit: str
    value: float
    spread: float | None
    spread_is: str
    note: str = ""


def headline(facts: RunFacts) -> list[Figure]:
    """The last losses and bounds, and the first scores of the last result."""
    found = []
    for name, (what, unit) in CURVES.items():
        value, se = facts.last(name), facts.last(f"{name}_se")
        if value is not None:
            found.append(Figure(what, unit, value, None if se is None else 2 * se, TWICE))
    for bound in facts.results["bound"][-1:]:
        value, se = bound.found.per_dimension
        note = "on training images" if facts.trains_on(bound) else ""
        found.append(Figure("variational bound", bound.found.unit, value, 2 * se, TWICE, note))
    for result in facts.results["scores"][-1:]:
        for row in score_rows(result.found)[:2]:
            unit = row.network or result.path.name
            found.append(Figure(row.name, unit, row.value, row.spread, row.spread_is, row.note))
    return found


class Row(NamedTuple):
    """A line of a table: its name, what stands beside that, and a value for each run; None where a run has none."""

    name: str
    detail: str
    values: list[Any]


@dataclass(frozen=True)
class Comparison:
    """Runs to be compared, in the order in which they were named."""

    runs: list[RunFacts]

    @property
    def differences(self) -> list[Row]:
        """Settings, data and networks in which not all are alike."""
        told = [_told(facts) for facts in self.runs]
        return [row for row in self._rows(told) if any(value != row.values[0] for value in row.values)]

    @property
    def figures(self) -> list[Row]:
        """The numbers by which each is judged, a Figure for each run."""
        rows = self._rows([{(each.what, each.unit): each for each in headline(facts)} for facts in self.runs])
        return [row._replace(detail=_with_spreads(row)) for row in rows]

    @property
    def same_loss(self) -> bool:
        """Whether their losses are of one weighting, so that they can be compared."""
        return len({facts.settings.weighting for facts in self.runs}) == 1

    def report(self) -> ComparisonReport:
        """All facts of each, and the differences by name."""
        runs = [facts.report() for facts in self.runs]
        return ComparisonReport(runs, {row.name: finite(row.values) for row in self.differences})

    def _rows(self, columns: list[dict[tuple[str, str], Any]]) -> list[Row]:
        """A line for each name that any has, in the order in which they come."""
        names = dict.fromkeys(name for column in columns for name in column)
        return [Row(*name, [column.get(name) for column in columns]) for name in names]


def _with_spreads(row: Row) -> str:
    """The unit of a row of figures, and what stands after their ±."""
    spreads = sorted({each.spread_is for each in row.values if each is not None and each.spread is not None})
    return f"{row.detail}, ± {' or '.join(spreads)}" if spreads else row.detail


def _told(facts: RunFacts) -> dict[tuple[str, str], Any]:
    """The settings by name, with the data and the network that they are of."""
    digest = str(facts.data.get("payload_sha256"))[:DIGEST]
    data = {"data": facts.data.get("path"), "images": facts.trained_on, "data sha256": digest}
    network = {f"network {key}": value for key, value in facts.network.items()}
    return {(key, ""): value for key, value in {**facts.known, **data, **network}.items()}

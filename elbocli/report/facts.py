"""Facts on a run, for a page or as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from elbocli.bound.result import Bound, Classification, LatentBound, Likelihoods, Theorem
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.evaluate.result import EvalResult
from elbocli.files.latents import ATTRIBUTES
from elbocli.report.excess import RunExcess
from elbocli.report.extremes import Extremes
from elbocli.report.log_history import LogHistory, Numbers, curve
from elbocli.report.result import CommandReport, ErrorMap, ObjectiveReport, RunReport, ShownSamples
from elbocli.report.results import ResultFile
from elbocli.report.terms import Term
from elbocli.report.thumbnails import Thumbnails
from elbocli.run.effective import EffectiveWeighting
from elbocli.run.status import RunStatus
from elbocli.run.train_settings import TrainSettings

DIGITS = 6
"""Significant ones, of numbers on a map."""


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


class Command(NamedTuple):
    """A command line and what it does."""

    does: str
    line: str


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder shows it. None, or empty, is what isn't there; `missing` says so in sentences.

    source: where an imported run came from, as config.yaml says; empty for one that elbo trained, as all of `settings` is
    known of that. known: the settings that are.

    data, network: as config.yaml has them, and the network's parameters. environment: what config.yaml says of its last start, its speed, and the newest checkpoint. course,
    held_out: errors of training and validation. drawn: samples by class, which come from the file `drawn_from`.
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
    scores: list[ResultFile[EvalResult]]
    bounds: list[ResultFile[Bound | LatentBound]]
    theorems: list[ResultFile[Theorem]]
    excess: RunExcess | None
    likelihoods: list[ResultFile[Likelihoods]]
    extremes: list[Extremes]
    classifications: list[ResultFile[Classification]]
    commands: list[Command]
    missing: list[str]

    @property
    def trained_on(self) -> Any:
        """Number of images: those held out for validation are none of them."""
        count = self.data.get("count", "?")
        return count - self.settings.val_split if isinstance(count, int) else count

    def trains_on(self, result: ResultFile[Any]) -> bool:
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
            status=finite(_standing(self.status)),
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
            scores=_contents(self.scores),
            bound=_contents(self.bounds),
            theorem=_contents(self.theorems),
            excess=finite(self.excess and self.excess.json()),
            likelihoods=_contents(self.likelihoods),
            per_image=[str(each.path) for each in self.extremes],
            classification=_contents(self.classifications),
            commands=[CommandReport(each.does, each.line) for each in self.commands],
            missing=[*self.missing],
        )


def _standing(status: RunStatus | None) -> dict[str, Any]:
    """Say it as status.json does, the time in words, without the process."""
    return {} if status is None else {**status.facts(), "time": status.when}


def _contents(results: Sequence[ResultFile[Any]]) -> list[dict[str, Any]]:
    return [{"file": str(result.path), **finite(result.content)} for result in results]


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

"""The result of `elbo report --json`: all that the page says but its pictures."""

from __future__ import annotations

from typing import Any

from elbocli.files.records import Record, stored

Curve = list[float | None]
"""Numbers, None where there is none that JSON has."""


class Term(Record, frozen=True):
    """One thing with a name: `what` it is, how it was named, its formula and source."""

    what: str
    name: str
    formula: str
    source: str


class ObjectiveReport(Record, frozen=True, kw_only=True):
    """The objective, and whether it is an ELBO on `logsnr`, the range of levels.

    rising: where the weighting rises. over_time: of one that is learned, the same at several moments.
    """

    weighting: str
    monotone: bool
    rising: list[list[float]]
    verdict: str
    logsnr: list[float]
    over_time: list[dict[str, Any]] | None = None
    terms: list[Term]


class ErrorMap(Record, frozen=True):
    """The errors of a loss log over time. edges: of the bins of λ. images: where each interval ends.

    eps_mse, density: [intervals][bins] the mean error, and the share of the draws over the bin's width.
    """

    edges: list[float]
    images: list[int]
    eps_mse: list[Curve]
    density: list[Curve]


class ShownSamples(Record, frozen=True):
    """The samples that the page shows: the file that they are from, and the names of their classes."""

    file: str
    classes: list[str]


class CommandReport(Record, frozen=True):
    """A command line, and what it does."""

    does: str
    command: str


@stored("result of elbo report --json (JSON)")
class RunReport(Record, frozen=True, kw_only=True):
    """All facts on a run. status, settings, source, data, network, environment: by the names that the run's files have.

    status: empty where it isn't known. curves: metrics over time. scores, bound, theorem, likelihoods, classification:
    results by other commands, each with its `file`. missing: what isn't there, in sentences.
    """

    run: str
    status: dict[str, Any]
    objective: ObjectiveReport | None
    settings: dict[str, Any]
    source: dict[str, Any] | None = None
    data: dict[str, Any]
    network: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, Curve]
    errors: ErrorMap | None
    validation_errors: ErrorMap | None
    previews: list[str]
    samples: ShownSamples
    scores: list[dict[str, Any]]
    bound: list[dict[str, Any]]
    theorem: list[dict[str, Any]]
    excess: dict[str, Any] | None
    likelihoods: list[dict[str, Any]]
    per_image: list[str]
    classification: list[dict[str, Any]]
    commands: list[CommandReport]
    missing: list[str]


@stored("result of elbo report --json, of several runs (JSON)")
class ComparisonReport(Record, frozen=True):
    """Several runs. differences: by name of a setting, its value in each run; None where a run has none."""

    runs: list[RunReport]
    differences: dict[str, list[Any]]

"""Read everything that a report on a run shows."""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from elbocli.core.adaptive import ErrorMoments
from elbocli.core.estimate import Estimate
from elbocli.core.optimum import copying, excess
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.training import CRITERIA
from elbocli.core.weighting import ForeignLoss, LearnedCurve, ScheduleDensity, Weighting
from elbocli.errors import DataError, ElboError
from elbocli.files.checkpoint import CONFIG, Checkpoint, RunConfig, checkpoints, read_checkpoint
from elbocli.files.dataset import Dataset
from elbocli.files.recognise import recognise
from elbocli.files.records import Record, stored
from elbocli.images.samples import read_samples
from elbocli.nn.auxiliary import AUXILIARIES
from elbocli.nn.networks import count_parameters
from elbocli.report.log_history import Curve, LogHistory, curve, error_of, read_curves, read_log_history, score_columns
from elbocli.report.results import RESULTS, ResultFile, Row, drawn_by, read_result, results_in, score_rows
from elbocli.report.thumbnails import Extremes, Thumbnails, chosen_times, read_by_class, read_extremes, read_preview, read_strips
from elbocli.run.folder import read_status
from elbocli.run.open import EffectiveWeighting, dataset_of, effective_weightings, empty_network, read_run_config
from elbocli.run.settings import run_settings, schedule_of
from elbocli.run.train_settings import ADAPTIVE, TrainSettings

DIGITS = 6  # significant digits of the numbers in an ErrorMap
DIGEST = 12  # hex digits of a digest on the page
NATS, BITS = "nats per dimension", "bits per dimension"
CURVES = {
    "loss": ("training loss", NATS),
    "val_loss": ("validation loss", NATS),
    "val_bpd": ("variational bound", f"{BITS}, validation images"),
}


class Term(Record):
    """Component of the objective. what: role, such as "weighting". name: SPEC. source: paper."""

    what: str
    name: str
    formula: str
    source: str


class ObjectiveReport(Record, kw_only=True):
    """The training objective, and a verdict on whether the objective is an ELBO.

    logsnr: range of λ. rising: intervals of λ where the weighting rises. auxiliary: SPECs of auxiliary losses.
    over_time: `monotone` and `rising` of a learned weighting, by step; None: fixed weighting.
    """

    weighting: str
    monotone: bool
    rising: list[list[float]]
    verdict: str
    logsnr: list[float]
    auxiliary: list[str] = []
    over_time: list[dict[str, Any]] | None = None
    terms: list[Term]


class ErrorMap(Record):
    """Errors in a loss log, by interval of training and bin of λ.

    images: number of images trained on by the end of each interval.
    eps_mse, density: mean ε error and density of the drawn λ, [intervals][bins] each.
    """

    edges: list[float]
    images: list[int]
    eps_mse: list[Curve]
    density: list[Curve]


class ShownSamples(Record):
    """Samples on the page. file: file of samples, or contact sheet of `elbo train`. classes: titles of rows."""

    file: str
    classes: list[str]


class CommandReport(Record):
    """A command line, and its purpose."""

    does: str
    command: str


@stored("result of elbo report --json (JSON)")
class RunReport(Record, kw_only=True):
    """Report on a run, for --json.

    status, settings, source, data, network, environment: keys as in the run's files. status: {} if unknown.
    curves: columns of metrics.jsonl. missing: messages about missing or damaged files. per_image: files of `bound --per-image`.
    scores, bound, theorem (`bound --check`), likelihoods, classification: contents of result files, and the path as key `file`.
    excess: None, or keys edges (of λ), least (possible errors), excess (over least), copying. previews: steps of contact sheets.
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
class ComparisonReport(Record):
    """Reports on several runs. differences: setting → value in each run; None: no such setting."""

    runs: list[RunReport]
    differences: dict[str, list[Any]]


@dataclass(frozen=True)
class RunFacts:
    """A run's report, with data for plots and pictures; None or empty: missing.

    schedule: training schedule; None: adaptive. effective: weighting by step; one entry: fixed weighting.
    course, held_out: training errors and validation errors, by λ and step.
    previews: a row of pictures per contact sheet of `elbo train`. drawn: a row of samples per class.
    results: name in RESULTS → result files. extremes: likeliest and least likely images per file of likelihoods.
    """

    report: RunReport
    settings: TrainSettings
    schedule: Schedule | None
    effective: list[EffectiveWeighting]
    course: LogHistory | None
    held_out: LogHistory | None
    previews: list[Thumbnails]
    drawn: list[Thumbnails]
    results: dict[str, list[ResultFile]]
    extremes: list[Extremes]

    @property
    def trained_on(self) -> Any:
        """Number of training images, without validation images; "?": unknown."""
        count = self.report.data.get("count", "?")
        return count - self.settings.val_split if isinstance(count, int) else count

    def trains_on(self, result: ResultFile) -> bool:
        """Return whether a result was computed on the training dataset."""
        known = self.report.data.get("payload_sha256")
        return known is not None and result.content.get("payload_sha256") == known

    @property
    def headline(self) -> list[Row]:
        """Main results of the run."""
        return self.logged + [
            row._replace(unit=row.unit or result.path.name)
            for result in self.results["scores"][-1:]
            for row in score_rows(result.found)[:2]
        ]

    @property
    def logged(self) -> list[Row]:
        """Last losses, scores and bound of the run."""
        found = []
        scores = {name: (title, "while training") for name, title in score_columns(self.report.curves).items()}
        for name, (what, unit) in (CURVES | scores).items():
            values, errors = (curve(self.report.curves, key)[1] for key in (name, error_of(name)))
            if values:
                last = Estimate(values[-1], *errors[-1:])
                found.append(Row(what, unit, last.value, interval=last.interval))
        for bound in self.results["bound"][-1:]:
            last = Estimate(*bound.found.per_dimension)
            note = "on training images" if self.trains_on(bound) else ""
            unit = ", ".join([bound.found.unit, *Path(str(bound.content.get("dataset", ""))).parts[-1:]])
            found.append(Row("variational bound", unit, last.value, note=note, interval=last.interval))
        return found


def table(columns: Sequence[dict[Any, Any]]) -> dict[Any, list[Any]]:
    """Merge dicts: key → list with a value per dict; None: the dict lacks the key."""
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name) for column in columns] for name in names}


def differences(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs: name → value in each run."""
    columns = [
        {
            **facts.report.settings,
            "data": facts.report.data.get("path"),
            "images": facts.trained_on,
            "data sha256": str(facts.report.data.get("payload_sha256"))[:DIGEST],
            **{f"network {key}": value for key, value in facts.report.network.items()},
        }
        for facts in runs
    ]
    return {name: values for name, values in table(columns).items() if any(value != values[0] for value in values)}


def figures(runs: Sequence[RunFacts]) -> dict[tuple[str, str], list[Row | None]]:
    """Return the main results: (name, unit) → a Row per run; None: no such result."""
    return table([{(row.name, row.unit): row for row in facts.headline} for facts in runs])


def report_of(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """Return the JSON report on one or several runs; NaN and infinity become None."""
    report = ComparisonReport([facts.report for facts in runs], differences(runs)) if len(runs) > 1 else runs[0].report
    return dict(json.loads(json.dumps(report.json()), parse_constant=lambda _: None))


def gather(run: Path, samples: Path | None = None, results: Sequence[Path] = ()) -> RunFacts:
    """Read everything that a report on a run shows.

    samples: file of images to show by class; None: the last contact sheet of `elbo train`.
    results: more result files (JSON) of elbo, or tables of 'elbo bound --per-image'.
    Raises FormatError: `run` is not a run. Raises ElboError: unusable `samples` or `results`.
    """
    name = str(run) if run.name not in ("", "..") else run.resolve().name  # "." is no name for a page
    missing = list[str]()

    def ask(read: Callable[..., Any], *given: Any) -> Any:
        try:
            return read(*given)
        except ElboError as error:
            missing.append(str(error))
            return None

    config = read_run_config(run)
    settings = run_settings(config.settings, run / CONFIG)
    tables = [path for path in results if recognise(path) == "a table"]
    named = [read_result(path) for path in results if path not in tables]
    found = list({each.path.resolve(): each for each in (*results_in(run), *named)}.values())
    shown = {kind: [each for each in found if each.kind == kind] for kind, _ in RESULTS.values()}
    sheets = sorted(run.glob("previews/step-*.png"))
    drawn_from = samples or (sheets[-1] if sheets else "")
    if samples is not None:
        drawn = read_by_class(samples, config.data.class_names or [])
    else:
        drawn = (ask(read_strips, drawn_from) if sheets else None) or []
    imported = config.source is not None
    known = {key: value for key, value in settings.written().items() if key in config.settings or not imported}
    objective, schedule, effective = None, None, list[EffectiveWeighting]()
    if {"weighting", "schedule"} <= set(known) and (found_objective := ask(_objective, run, settings)):
        objective, schedule, effective = found_objective
    curves: dict[str, Curve] = ask(read_curves, run / "metrics.jsonl", missing) or {}
    status = None if imported else ask(read_status, run)
    course = ask(read_log_history, run / "losslog.jsonl", missing)
    held_out = ask(read_log_history, run / "validation.jsonl", missing)
    network = ask(empty_network, config, run / CONFIG)
    optima = shown["optimum"]
    excess_found = ask(_excess, optima[-1], course, held_out, effective, config) if optima else None
    previews = [row for index in chosen_times(len(sheets)) if (row := ask(read_preview, sheets[index]))]
    extremes = [read_extremes(path, dataset_of(config.data, run), None) for path in tables]
    extremes += [pair for each in found if (pair := ask(_extremes, each, config, run))]
    checkpoint = next(filter(None, (ask(read_checkpoint, path, False) for path in reversed(checkpoints(run)))), None)
    packed = None if imported else ask(_packed, dataset_of(config.data, run), config)
    report = RunReport(
        run=name,
        status={} if status is None else {**status.facts(), "time": status.when},
        objective=objective,
        settings=known,
        source=config.source.json() if config.source else None,
        data=config.data.json(),
        network=config.network | ({} if network is None else {"parameters": count_parameters(network)}),
        environment=_environment(config, settings, curves, checkpoint),
        curves=curves,
        errors=_map(course),
        validation_errors=_map(held_out),
        previews=[row.name for row in previews],
        samples=ShownSamples(str(drawn_from), [row.name for row in drawn]),
        excess=excess_found,
        per_image=[str(each.path) for each in extremes],
        commands=[CommandReport(*each) for each in _commands(run, name, config, samples, shown["scores"], packed)],
        missing=missing,
        **{
            kind: [{"file": str(each.path), **each.content} for each in files]
            for kind, files in shown.items()
            if kind != "optimum"
        },
    )
    return RunFacts(report, settings, schedule, effective, course, held_out, previews, drawn, shown, extremes)


def _map(course: LogHistory | None) -> ErrorMap | None:
    if course is None:
        return None
    maps: list[Any] = [
        [[float(f"{value:.{DIGITS}g}") for value in row] for row in rows.tolist()] for rows in (course.error, course.density)
    ]
    return ErrorMap(course.edges.tolist(), course.images, *maps)


def _excess(
    result: ResultFile,
    course: LogHistory | None,
    held: LogHistory | None,
    effective: list[EffectiveWeighting],
    config: RunConfig,
) -> dict[str, Any]:
    # Errors above the least possible errors, and a verdict on memorisation.
    optimum, path = result.found, result.path
    if course is None or not effective:
        raise DataError(f"{path}: not shown, because the run lacks losslog.jsonl or a weighting; report on a run of 'elbo train'")
    if optimum.payload_sha256 != config.data.payload_sha256:
        raise DataError(
            f"{path}: has least possible errors for {optimum.dataset}, not the training images; use 'elbo optimum --like RUN'"
        )
    logs = {"training": (course, course.late())} | ({"held_out": (held, held.last())} if held else {})
    sums = {}
    for key, (log, errors) in logs.items():
        least, se = optimum.least(log.edges, training=key == "training")
        sums[key] = excess(ErrorMoments.of_sums(log.edges, errors), least, se, effective[-1].weighting)
    return {
        "excess": {key: {"nats_per_dimension": each.value, "se": each.se} for key, each in sums.items()},
        "copying": copying(sums["training"], sums["held_out"]) if held else None,
        "edges": course.edges.tolist(),
        "least": optimum.least(course.edges, training=True)[0].tolist(),
    }


def _extremes(result: ResultFile, config: RunConfig, run: Path) -> Extremes | None:
    named = result.content.get("per_image")
    if not isinstance(named, str) or result.kind == "classification":
        return None
    said = Path(str(result.content.get("dataset")))
    dataset = said if said.is_file() else dataset_of(config.data, run)
    return read_extremes(result.path.parent / Path(named).name, dataset, result.content.get("payload_sha256"))


def _objective(run: Path, settings: TrainSettings) -> tuple[ObjectiveReport, Schedule | None, list[EffectiveWeighting]]:
    schedule, effective = schedule_of(settings), effective_weightings(run, settings)
    *_, weighting, ends, auxiliary = effective[-1]
    rising = weighting.rising(*ends)
    report = ObjectiveReport(
        weighting=weighting.spec,
        monotone=not rising,
        rising=[list(stretch) for stretch in rising],
        verdict=effective[-1].verdict,
        auxiliary=[*auxiliary],
        logsnr=[settings.logsnr_min, settings.logsnr_max],
        over_time=[each.json() for each in effective] if weighting.learned else None,
        terms=[
            *weighting_terms(weighting),
            schedule_term(schedule),
            _term("prediction", settings.prediction, Prediction(settings.prediction).declared),
            *(_term("auxiliary loss", spec, AUXILIARIES.parse(spec)) for spec in auxiliary),
        ],
    )
    return report, schedule, effective


def _environment(
    config: RunConfig, settings: TrainSettings, curves: dict[str, Curve], newest: Checkpoint | None
) -> dict[str, Any]:
    rates = curve(curves, "images_per_s")[1]
    found = {
        **{key: getattr(config, key) for key in ("elbo_version", "torch_version", "python_version", "device_name", "processes")},
        "precision": settings.precision,
        "images_per_s": median(rates) if rates else None,
        **(config.init.about() if config.init else {}),
    }
    if newest is not None:
        size = sum(known.bytes for known in newest.meta.files.values()) / 1e6
        found |= {"checkpoint": newest.path.name, "weights": ", ".join(newest.names), "checkpoint_MB": size}
    return {key: value for key, value in found.items() if value is not None}


def _packed(data: Path, config: RunConfig) -> str | None:
    dataset = Dataset(data, latents=True)
    if dataset.identity().differs(config.data):
        raise DataError(f"{data}: has changed since the training, so its pack command is unknown; restore the dataset")
    return dataset.attributes.command


def _commands(
    run: Path, name: str, config: RunConfig, samples: Path | None, scores: Sequence[ResultFile], packed: str | None
) -> Iterator[tuple[str, str]]:
    # (purpose, command line) of each command. name: the run's name on the page.
    if packed:
        yield "Pack the images", packed
    for line in config.commands:
        yield "Import, as typed" if config.source else "Train, as typed", line
    if not config.source:
        again = ["elbo", "train", dataset_of(config.data, run), "--config", run / CONFIG, "-o", f"{name}-again"]
        yield "Train again with the same settings, whatever the environment says by then", shlex.join(map(str, again))
    if samples is not None:
        with read_samples(samples) as reader:
            yield from (("Draw these samples", line) for line in drawn_by(reader.made.more))
    for each in scores:
        yield from (
            (f"Draw the samples of {each.path.name}", line) for line in drawn_by(*(one.facts.made for one in each.found.repeats))
        )
        if line := each.found.repeats[0].facts.command:
            yield f"Find {each.path.name}", line


FORMULAS = {  # class of a curve that no registry declares → (formula, source)
    LearnedCurve: ("p(logsnr) / E|e|^2, learned while training", "Karras et al. 2024, in effect"),
    ScheduleDensity: ("p(logsnr) / max p", "the eps loss under the schedule"),
    ForeignLoss: ("2 p F / eps_factor", "the loss of this target, factor F and schedule p"),
    Schedule: ("a table of t and logsnr", "a file"),
}


def weighting_terms(weighting: Weighting) -> list[Term]:
    """Return a Term (name, formula, source) for a weighting and for each target, factor and schedule in its SPEC."""
    curve = weighting.curve
    terms = [_term("weighting", weighting.spec, curve)]
    if isinstance(curve, ForeignLoss):
        terms.append(_term("target", curve.prediction.spec, curve.prediction.declared))
        terms += [_term("factor F", curve.factor.spec, curve.factor)] if curve.factor else []
    if weighting.schedule and not weighting.learned:
        terms.append(schedule_term(weighting.schedule, "its schedule"))
    return terms


def schedule_term(schedule: Schedule | None, what: str = "schedule") -> Term:
    """Return the Term of a schedule; None: adaptive. what: component's name on the page."""
    if schedule is None:
        loss = CRITERIA["loss"]
        return Term(what, ADAPTIVE, f"p(logsnr) ~ {loss.formula}, fitted while training", loss.source)
    return _term(what, schedule.base, schedule.declared or schedule)


def _term(what: str, spec: str, of: Any) -> Term:
    return Term(what, spec, *(FORMULAS.get(type(of)) or (of.formula, of.source)))

"""Read all that a run's folder tells of it; what isn't there, or damaged, is named."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from elbocli.bound.result import Classification
from elbocli.core.adaptive import ErrorMoments
from elbocli.core.optimum import copying, excess
from elbocli.core.registry import Declaration
from elbocli.core.schedule import Schedule
from elbocli.core.training import CRITERIA
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, ElboError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import RunConfig, RunData
from elbocli.files.dataset import Dataset
from elbocli.files.results import Optimum, is_table
from elbocli.images.samples import read_samples
from elbocli.nn.networks import count_parameters
from elbocli.report.facts import ObjectiveFacts, RunExcess, RunFacts
from elbocli.report.log_history import LATE, Numbers, curve, read_curves, read_log_history
from elbocli.report.result import CommandReport, Term
from elbocli.report.results import RESULTS, ResultFile, drawn_by, read_result, results_in
from elbocli.report.thumbnails import (
    ROW,
    Extremes,
    Thumbnails,
    chosen_times,
    read_by_class,
    read_extremes,
    read_sheet,
    strips,
    table_of,
    thumbnails_of,
)
from elbocli.run.dataset_place import dataset_of
from elbocli.run.effective import effective_weightings
from elbocli.run.objective import Objective
from elbocli.run.open import began_from, empty_network, read_run_config
from elbocli.run.settings import run_settings
from elbocli.run.status import read_status
from elbocli.run.train_settings import ADAPTIVE, TrainSettings

T = TypeVar("T")


class Missing(list[str]):
    """Sentences on what couldn't be told."""

    def asked(self, ask: Callable[..., T], *given: Any, otherwise: Any = None) -> T:
        """Return what `ask` answers. An ElboError is taken for a sentence, and the answer is `otherwise`."""
        try:
            return ask(*given)
        except ElboError as error:
            self.append(str(error))
            return otherwise


def gather(run: Path, samples: Path | None = None, results: Sequence[Path] = ()) -> RunFacts:
    """All facts of a run. samples: a file of images to show by class. results: JSON of 'elbo eval', 'elbo bound' or
    'elbo optimum', or files of all images, besides those in the run's folder.

    Raises FormatError when it is no run, and ElboError for a file named here that can't be used.
    """
    name = str(run) if run.name not in ("", "..") else run.resolve().name  # what is called . names nothing
    missing = Missing()
    config = read_run_config(run, missing.append)
    settings = run_settings(config.settings, run / "config.yaml")
    tables = [path for path in dict.fromkeys(results) if is_table(path)]
    given = [read_result(path) for path in dict.fromkeys(results) if path not in tables]
    named = {path.resolve() for path in results}
    found = [*(each for each in results_in(run, missing.append) if each.path.resolve() not in named), *given]

    shown = {name: [each for each in found if isinstance(each.found, kinds)] for name, kinds in RESULTS.items()}
    sheets = sorted(run.glob("previews/step-*.png"))
    drawn, drawn_from = _drawn(samples, sheets, config, missing)
    source = config.source.json() if config.source else {}
    told = config.settings
    known = {key: value for key, value in settings.stored().items() if key in told or not source}
    validates = (run / "validation.jsonl").exists()
    if not validates and not source:
        missing.append(f"{run}: no validation; 'elbo train --val' or '--val-split' adds it")
    for kind, how in (("scores", "elbo eval"), ("bound", "elbo bound")):
        if not shown[kind]:
            missing.append(f"{run}: no result of '{how}' in it; name one with --scores FILE")
    log = run / "metrics.jsonl"
    curves = {} if source else missing.asked(read_curves, log, missing.append, otherwise={})
    if source and not {"weighting", "schedule"} <= set(known):
        missing.append(
            f"{run}: the objective it was trained with isn't known; 'elbo import' takes --weighting and --schedule"
        )
    course, held_out = (run / log for log in ("losslog.jsonl", "validation.jsonl"))
    facts = RunFacts(  # in the order in which they are asked for, and missing
        run=name,
        status=None if source else missing.asked(read_status, run),
        settings=settings,
        known=known,
        source=source,
        data=config.data.json(),
        network=config.network
        | missing.asked(
            lambda: {"parameters": count_parameters(empty_network(config, run / "config.yaml"))}, otherwise={}
        ),
        environment=_environment(run, config, settings, curves, missing),
        objective=missing.asked(_objective, run, settings, missing)
        if {"weighting", "schedule"} <= set(known)
        else None,
        curves=curves,
        course=None if source else missing.asked(read_log_history, course, missing.append),
        held_out=missing.asked(read_log_history, held_out, missing.append) if validates else None,
        previews=[] if source else _previews(run, sheets, missing),
        drawn=drawn,
        drawn_from=drawn_from,
        results=shown,
        excess=None,
        extremes=[
            *(read_extremes(path, dataset_of(config.data, run), None) for path in tables),
            *filter(None, (missing.asked(_extremes, each, config, run) for each in found)),
        ],
        commands=_commands(run, name, config, samples, shown["scores"], missing),
        missing=missing,
    )
    for each in [each for each in found if isinstance(each.found, Optimum)][-1:]:
        facts = replace(facts, excess=_excess(facts, each.path, each.found, missing))
    return facts


def _excess(facts: RunFacts, path: Path, optimum: Optimum, missing: Missing) -> RunExcess | None:
    """The run's errors over the least ones; None, and said to `missing`, where they can't be compared."""
    course, held, objective = facts.course, facts.held_out, facts.objective
    if course is None or objective is None:
        missing.append(f"{path}: the run has no errors to compare with the least ones")
        return None
    if optimum.payload_sha256 != facts.data.get("payload_sha256"):
        missing.append(
            f"{path}: the optimum is of {optimum.dataset}, not of the images that the run was trained on; find it by "
            "'elbo optimum --like RUN'"
        )
        return None
    own = ErrorMoments.of_sums(course.edges, course.late(LATE))
    new = None if held is None else ErrorMoments.of_sums(held.edges, held.sums[-1])
    try:
        least, se = optimum.least(own.edges, training=True)
        gain = excess(own, least, se, objective.weighting)
        new_gain = None if new is None else excess(new, *optimum.least(new.edges), objective.weighting)
    except ElboError as error:
        missing.append(f"{path}: {error}")
        return None
    return RunExcess(least, own, new, gain, new_gain, None if new_gain is None else copying(gain, new_gain))


def _extremes(result: ResultFile, config: RunConfig, run: Path) -> Extremes | None:
    """The pictures of a result that names a file of each image's likelihood. Raises ElboError."""
    named = result.content.get("per_image")
    if not isinstance(named, str) or isinstance(result.found, Classification):
        return None
    said = Path(str(result.content.get("dataset")))
    dataset = said if said.is_file() else dataset_of(config.data, run)
    return read_extremes(table_of(result.path, named), dataset, result.content.get("payload_sha256"))


def _objective(run: Path, settings: TrainSettings, missing: Missing) -> ObjectiveFacts:
    """The objective; a weighting that is learned as it is now. Raises ElboError for a file that it needs and that is gone."""
    objective = Objective(settings)
    schedule, effective = objective.schedule, effective_weightings(run, settings, missing.append)
    weighting = effective[-1].weighting
    low, high = max(settings.logsnr_min, weighting.support[0]), min(settings.logsnr_max, weighting.support[1])
    network = _term("prediction", settings.prediction, objective.prediction.declared)
    terms = [*weighting_terms(weighting), schedule_term(schedule), network]
    rising = weighting.rising(low, high)
    return ObjectiveFacts(
        weighting,
        schedule,
        settings.logsnr_min,
        settings.logsnr_max,
        rising,
        weighting.verdict(low, high),
        terms,
        effective,
    )


def _environment(
    run: Path, config: RunConfig, settings: TrainSettings, curves: dict[str, Numbers], missing: Missing
) -> dict[str, Any]:
    """Facts on how it ran, with the newest checkpoint that is whole, as it says itself: its files aren't read."""
    keys = ("elbo_version", "torch_version", "python_version", "device_name", "processes")
    rates = curve(curves, "images_per_s")[1]
    found = {key: getattr(config, key) for key in keys}
    found |= {"precision": settings.precision, "images_per_s": median(rates) if rates else None, **began_from(config)}
    read = (missing.asked(store.read_checkpoint, path, False) for path in reversed(store.checkpoints(run)))
    newest = next(filter(None, read), None)
    if newest is None:
        missing.append(f"{run}: no checkpoint yet")
    else:
        size = sum(known.bytes for known in newest.meta.files.values()) / 1e6
        found |= {"checkpoint": newest.path.name, "weights": ", ".join(newest.names), "checkpoint_MB": size}
    return {key: value for key, value in found.items() if value is not None}


def _previews(run: Path, sheets: list[Path], missing: Missing) -> list[Thumbnails]:
    """The same pictures of the same noise, at several times."""
    if not sheets:
        missing.append(f"{run}: no previews yet")

    def strip(sheet: Path) -> Thumbnails:
        return thumbnails_of(sheet.stem.removeprefix("step-").lstrip("0") or "0", list(read_sheet(sheet)[0][:ROW]))

    strips = [missing.asked(strip, sheets[index]) for index in chosen_times(len(sheets))]
    return [each for each in strips if each is not None]


def _drawn(
    samples: Path | None, sheets: list[Path], config: RunConfig, missing: Missing
) -> tuple[list[Thumbnails], str]:
    """Samples by class and where they are from: a file, whose faults are raised, or the last preview."""
    names = config.data.class_names or []
    if samples is not None:
        return read_by_class(samples, names), str(samples)

    def last(path: Path) -> tuple[list[Thumbnails], str]:
        images, groups = read_sheet(path)
        return strips(lambda index: images[index], groups), str(path)

    return missing.asked(last, sheets[-1], otherwise=([], "")) if sheets else ([], "")


def _packed(data: RunData, run: Path) -> str:
    """The command that packed the run's images. Raises FormatError, and DataError when the file holds others now."""
    path = dataset_of(data, run)
    attributes = Dataset(path, latents=True).attributes
    if attributes.payload_sha256 != data.payload_sha256:
        raise DataError(f"{path}: holds other images now than this run was trained on")
    return attributes.command or ""


def _commands(
    run: Path, name: str, config: RunConfig, samples: Path | None, scores: Sequence[Any], missing: Missing
) -> list[CommandReport]:
    """Command lines as they were typed, where they were written down."""
    if config.source:
        found = [CommandReport("Import, as typed", line) for line in config.commands]
    else:
        data = str(dataset_of(config.data, run))
        again = shlex.join(["elbo", "train", data, "--config", str(run / "config.yaml"), "-o", f"{name}-again"])
        found = [
            CommandReport("Pack the images", missing.asked(_packed, config.data, run, otherwise="")),
            *(CommandReport("Train, as typed", line) for line in config.commands),
            CommandReport("Train again with the same settings, whatever the environment says by then", again),
        ]
    if samples is not None:
        with read_samples(samples) as reader:
            found += [CommandReport("Draw these samples", line) for line in reader.made.commands]
    for each in scores:
        found += [CommandReport(f"Draw the samples of {each.path.name}", line) for line in drawn_by(each.found)]
        found.append(CommandReport(f"Find {each.path.name}", each.found.repeats[0].facts.command or ""))
    return [each for each in found if each.command]


def weighting_terms(weighting: Weighting) -> list[Term]:
    """A weighting; for one that is written as a loss, its parts."""
    spec, loss = weighting.spec, weighting.foreign_loss
    if weighting.declared:
        return [_term("weighting", spec, weighting.declared)]
    if weighting.learned:
        return [Term("weighting", spec, "p(logsnr) / E|e|^2, learned while training", "Karras et al. 2024, in effect")]
    assert weighting.schedule is not None
    schedule = _schedule_term("its schedule", weighting.schedule)
    if loss is None:
        return [Term("weighting", spec, "p(logsnr) / max p", "the eps loss under the schedule"), schedule]
    return [
        Term("weighting", spec, "2 p F / eps_factor", "the loss of this target, factor F and schedule p"),
        _term("target", loss.prediction.spec, loss.prediction.declared),
        *([_term("factor F", loss.factor.spec, loss.factor)] if loss.factor else []),
        schedule,
    ]


def schedule_term(schedule: Schedule | None) -> Term:
    """The schedule that draws the noise levels. schedule: None when it adapts."""
    if schedule is None:
        loss = CRITERIA["loss"]
        return Term("schedule", ADAPTIVE, f"p(logsnr) ~ {loss.formula}, fitted while training", loss.source)
    return _schedule_term("schedule", schedule)


def _schedule_term(what: str, schedule: Schedule) -> Term:
    """A declared schedule, or a file."""
    if schedule.declared:
        return _term(what, schedule.base, schedule.declared)
    return Term(what, schedule.base, "a table of t and logsnr", "a file")


def _term(what: str, spec: str, declared: Declaration[Any]) -> Term:
    return Term(what, spec, declared.formula, declared.source)

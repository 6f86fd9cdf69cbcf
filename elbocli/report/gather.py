"""Read everything that a report on a run shows."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from elbocli.core.adaptive import ErrorMoments
from elbocli.core.optimum import Excess, copying, excess
from elbocli.errors import DataError, ElboError
from elbocli.files.checkpoint import CONFIG, checkpoints, read_checkpoint
from elbocli.files.dataset import Dataset
from elbocli.files.recognise import recognise
from elbocli.files.records import Record, stored
from elbocli.images.samples import read_samples
from elbocli.nn.networks import count_parameters
from elbocli.report.log_history import Curve, LogHistory, curve, read_curves, read_log_history
from elbocli.report.objective import ObjectiveReport, ReadObjective, read_objective
from elbocli.report.results import RESULTS, ResultFile, drawn_by, read_result, results_in
from elbocli.report.thumbnails import Extremes, Thumbnails, chosen_times, read_by_class, read_extremes, read_preview
from elbocli.run.config import RunConfig, read_run_config
from elbocli.run.folder import read_status
from elbocli.run.open import OBJECTIVE, dataset_of, empty_network
from elbocli.run.train_settings import TrainSettings

DIGITS = 6  # significant digits of the numbers in an ErrorMap


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


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and the files that the user names beside it.

    samples: file of images to show by class, or None. results: result files, and tables of 'elbo bound --per-image'.
    missing: messages about files that could not be read so far.
    """

    path: Path
    config: RunConfig
    samples: Path | None
    results: Sequence[Path]
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.path) if self.path.name not in ("", "..") else self.path.resolve().name  # "." is no name for a page

    @property
    def imported(self) -> bool:
        return self.config.source is not None

    @property
    def dataset(self) -> Path:
        return dataset_of(self.config.data, self.path)

    @property
    def sheets(self) -> list[Path]:
        """Contact sheets of `elbo train`, the oldest first."""
        return sorted(self.path.glob("previews/step-*.png"))

    @property
    def tables(self) -> list[Path]:
        return [path for path in self.results if recognise(path) == "a table"]

    @property
    def settings(self) -> TrainSettings:
        return self.config.settings

    def ask(self, read: Callable[..., Any], *args: Any) -> Any:
        """Return read(*args), or None, with the message in `missing`, if it raises an ElboError."""
        try:
            return read(*args)
        except ElboError as error:
            self.missing.append(str(error))
            return None


class Logs(NamedTuple):
    """Logs of a run. curves: columns of metrics.jsonl. training, validation: errors by λ; None: no such log."""

    curves: dict[str, Curve]
    training: LogHistory | None
    validation: LogHistory | None


class Pictures(NamedTuple):
    """Pictures of a report.

    previews: a row per contact sheet of `elbo train`. drawn: a row of samples per class, from the file `source`.
    extremes: likeliest and least likely images per file of likelihoods.
    """

    previews: list[Thumbnails]
    drawn: list[Thumbnails]
    source: str
    extremes: list[Extremes]


Results = dict[str, list[ResultFile]]  # name in RESULTS → result files


@dataclass(frozen=True)
class RunFacts:
    """A run's report, with data for plots and pictures; None or empty: missing."""

    report: RunReport
    settings: TrainSettings
    objective: ReadObjective
    logs: Logs
    pictures: Pictures
    results: Results

    @property
    def trained_on(self) -> Any:
        """Number of training images, without validation images; "?": unknown."""
        count = self.report.data.get("count", "?")
        return count - self.settings.val_split if isinstance(count, int) else count

    def trains_on(self, file: ResultFile) -> bool:
        """Return whether a result was computed on the training dataset."""
        digest = self.report.data.get("payload_sha256")
        return digest is not None and file.content.get("payload_sha256") == digest


def gather(run: Path, samples: Path | None = None, results: Sequence[Path] = ()) -> RunFacts:
    """Read everything that a report on a run shows.

    samples: file of images to show by class; None: the last contact sheet of `elbo train`.
    results: more result files (JSON) of elbo, or tables of 'elbo bound --per-image'.
    Raises FormatError: `run` is not a run. Raises ElboError: unusable `samples` or `results`.
    """
    folder = RunFolder(run, read_run_config(run), samples, results)
    files = _read_results(folder)
    objective = _read_objective(folder)
    logs = _read_logs(folder)
    pictures = Pictures(_read_previews(folder), *_read_samples(folder), _read_extremes(folder, files))
    report = _report(folder, objective, logs, pictures, files)
    return RunFacts(report, folder.settings, objective, logs, pictures, files)


def _report(folder: RunFolder, objective: ReadObjective, logs: Logs, pictures: Pictures, files: Results) -> RunReport:
    return RunReport(
        run=folder.name,
        status=_status(folder),
        objective=objective.report,
        settings=folder.settings.written(),
        source=folder.config.source.json() if folder.config.source else None,
        data=folder.config.data.json(),
        network=_network(folder),
        environment=_environment(folder, logs.curves),
        curves=logs.curves,
        errors=_error_map(logs.training),
        validation_errors=_error_map(logs.validation),
        previews=[row.name for row in pictures.previews],
        samples=ShownSamples(pictures.source, [row.name for row in pictures.drawn]),
        excess=folder.ask(_excess, files["optimum"][-1], logs, objective, folder.config) if files["optimum"] else None,
        per_image=[str(pair.path) for pair in pictures.extremes],
        commands=[CommandReport(*command) for command in _commands(folder, files["scores"])],
        missing=folder.missing,
        **{
            kind: [{"file": str(file.path), **file.content} for file in of_kind]
            for kind, of_kind in files.items()
            if kind != "optimum"
        },
    )


def _read_results(folder: RunFolder) -> Results:
    named = [read_result(path) for path in folder.results if path not in folder.tables]
    files = {file.path.resolve(): file for file in (*results_in(folder.path), *named)}.values()
    return {kind: [file for file in files if file.kind == kind] for kind, _ in RESULTS.values()}


def _read_objective(folder: RunFolder) -> ReadObjective:
    complete = all(map(folder.settings.states, OBJECTIVE))
    return (complete and folder.ask(read_objective, folder.path, folder.settings)) or ReadObjective()


def _read_logs(folder: RunFolder) -> Logs:
    curves = folder.ask(read_curves, folder.path / "metrics.jsonl", folder.missing) or {}
    names = ("losslog.jsonl", "validation.jsonl")
    return Logs(curves, *(folder.ask(read_log_history, folder.path / name, folder.missing) for name in names))


def _read_previews(folder: RunFolder) -> list[Thumbnails]:
    sheets = folder.sheets
    rows = (folder.ask(read_preview, sheets[index]) for index in chosen_times(len(sheets)))
    return [row for row in rows if row]


def _read_samples(folder: RunFolder) -> tuple[list[Thumbnails], str]:
    # Rows of samples per class, and their file.
    if folder.samples:
        return read_by_class(folder.samples, folder.config.data.class_names or []), str(folder.samples)
    return [], str(folder.sheets[-1]) if folder.sheets else ""


def _read_extremes(folder: RunFolder, files: Results) -> list[Extremes]:
    named = [read_extremes(path, folder.dataset, None) for path in folder.tables]
    of_results = (folder.ask(_extremes, file, folder) for of_kind in files.values() for file in of_kind)
    return [*named, *filter(None, of_results)]


def _extremes(file: ResultFile, folder: RunFolder) -> Extremes | None:
    table = file.content.get("per_image")
    if not isinstance(table, str) or file.kind == "classification":
        return None
    measured = Path(str(file.content.get("dataset")))
    dataset = measured if measured.is_file() else folder.dataset
    return read_extremes(file.path.parent / Path(table).name, dataset, file.content.get("payload_sha256"))


def _status(folder: RunFolder) -> dict[str, Any]:
    status = None if folder.imported else folder.ask(read_status, folder.path)
    return {} if status is None else {**status.facts(), "time": status.when}


def _network(folder: RunFolder) -> dict[str, Any]:
    network = folder.ask(empty_network, folder.config, folder.path / CONFIG)
    return folder.config.network | ({} if network is None else {"parameters": count_parameters(network)})


def _environment(folder: RunFolder, curves: dict[str, Curve]) -> dict[str, Any]:
    config, rates = folder.config, curve(curves, "images_per_s")[1]
    facts = {
        **{key: getattr(config, key) for key in ("elbo_version", "torch_version", "python_version", "device_name", "processes")},
        "precision": folder.settings.precision,
        "images_per_s": median(rates) if rates else None,
        **(config.init.result_facts() if config.init else {}),
    }
    saved = (folder.ask(read_checkpoint, path, False) for path in reversed(checkpoints(folder.path)))
    if newest := next(filter(None, saved), None):
        size = sum(file.bytes for file in newest.meta.files.values()) / 1e6
        facts |= {"checkpoint": newest.path.name, "weights": ", ".join(newest.names), "checkpoint_MB": size}
    return {key: value for key, value in facts.items() if value is not None}


def _error_map(log: LogHistory | None) -> ErrorMap | None:
    if log is None:
        return None
    rounded: list[Any] = [
        [[float(f"{value:.{DIGITS}g}") for value in row] for row in rows.tolist()] for rows in (log.error, log.density)
    ]
    return ErrorMap(log.edges.tolist(), log.images, *rounded)


def _excess(file: ResultFile, logs: Logs, objective: ReadObjective, config: RunConfig) -> dict[str, Any]:
    # Errors above the least possible errors, and a verdict on memorisation.
    optimum, (_, training, validation) = file.record, logs
    if training is None or not objective.effective:
        raise DataError(
            f"{file.path}: not shown, because the run lacks losslog.jsonl or a weighting; report on a run of 'elbo train'"
        )
    if optimum.payload_sha256 != config.data.payload_sha256:
        raise DataError(
            f"{file.path}: has least possible errors for {optimum.dataset}, not the training images; use 'elbo optimum --like RUN'"
        )

    def above(log: LogHistory, sums: Tensor) -> Excess:
        least, se = optimum.least(log.edges, training=log is training)
        return excess(ErrorMoments.of_sums(log.edges, sums), least, se, objective.effective[-1].weighting)

    estimates = {"training": above(training, training.late())}
    if validation:
        estimates["held_out"] = above(validation, validation.last())
    return {
        "excess": {key: {"nats_per_dimension": estimate.value, "se": estimate.se} for key, estimate in estimates.items()},
        "copying": copying(estimates["training"], estimates["held_out"]) if validation else None,
        "edges": training.edges.tolist(),
        "least": optimum.least(training.edges, training=True)[0].tolist(),
    }


def _packed(folder: RunFolder) -> str | None:
    dataset = Dataset(folder.dataset, latents=True)
    if dataset.identity().differs(folder.config.data):
        raise DataError(f"{dataset.path}: has changed since the training, so its pack command is unknown; restore the dataset")
    return dataset.attributes.command


def _commands(folder: RunFolder, scores: Sequence[ResultFile]) -> Iterator[tuple[str, str]]:
    # (purpose, command line) of each command.
    if not folder.imported and (packed := folder.ask(_packed, folder)):
        yield "Pack the images", packed
    for line in folder.config.commands:
        yield "Import, as typed" if folder.imported else "Train, as typed", line
    if not folder.imported:
        again = ["elbo", "train", folder.dataset, "--config", folder.path / CONFIG, "-o", f"{folder.name}-again"]
        yield "Train again with the same settings, whatever the environment says by then", shlex.join(map(str, again))
    if folder.samples:
        with read_samples(folder.samples) as reader:
            yield from (("Draw these samples", line) for line in drawn_by(reader.made.more))
    for file in scores:
        repeats = file.record.repeats
        yield from (
            (f"Draw the samples of {file.path.name}", line) for line in drawn_by(*(repeat.facts.made for repeat in repeats))
        )
        if line := repeats[0].facts.command:
            yield f"Find {file.path.name}", line

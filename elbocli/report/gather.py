"""Read everything that a report on a run shows."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from elbocli.errors import DataError, ElboError
from elbocli.files.checkpoint import CONFIG, checkpoints, read_checkpoint
from elbocli.files.dataset import Dataset
from elbocli.files.records import Record, stored
from elbocli.images.samples import read_samples
from elbocli.nn.networks import count_parameters
from elbocli.report.log_history import Curve, LogHistory, curve, read_curves, read_log_history
from elbocli.report.objective import ObjectiveReport, ReadObjective, read_objective
from elbocli.report.results import RESULTS, ResultFile, drawn_by, read_result, results_in
from elbocli.report.thumbnails import Thumbnails, chosen_times, read_by_class, read_preview
from elbocli.run.config import read_run_config
from elbocli.run.folder import read_status
from elbocli.run.open import OBJECTIVE, dataset_of, empty_network

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
    curves: columns of metrics.jsonl. missing: messages about missing or damaged files.
    scores, bound, theorem (`bound --check`), likelihoods, classification: contents of result files, and the path as key `file`.
    previews: steps of contact sheets.
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
    likelihoods: list[dict[str, Any]]
    classification: list[dict[str, Any]]
    commands: list[CommandReport]
    missing: list[str]


class RunFacts:
    """Everything that a report on a run shows; None or empty: missing.

    results: result files of elbo, by their name in RESULTS. missing: messages about files that could not be read.
    curves: columns of metrics.jsonl. training, validation: errors by λ.
    sheets: contact sheets of `elbo train`, the oldest first. previews: pictures of some of them.
    drawn: a row of samples per class.
    report: the facts for --json.
    """

    def __init__(self, path: Path, samples: Path | None = None, files: Sequence[Path] = ()):
        """Read a run.

        samples: file of images to show by class; None: the last contact sheet of `elbo train`.
        files: more result files (JSON) of elbo.
        Raises FormatError: `path` is not a run. Raises ElboError: unusable `samples` or `files`.
        """
        self.path, self.config, self.samples, self.missing = path, read_run_config(path), samples, list[str]()
        self.settings, self.dataset = self.config.settings, dataset_of(self.config.data, path)
        results = [*results_in(path), *map(read_result, files)]
        by_path = {result.path.resolve(): result for result in results}.values()
        self.results = {kind: [result for result in by_path if result.kind == kind] for kind, _ in RESULTS.values()}
        complete = all(map(self.settings.states, OBJECTIVE))
        self.objective: ReadObjective = (complete and self.ask(read_objective, path, self.settings)) or ReadObjective()
        self.curves: dict[str, Curve] = self.ask(read_curves, path / "metrics.jsonl", self.missing) or {}
        self.training: LogHistory | None = self.ask(read_log_history, path / "losslog.jsonl", self.missing)
        self.validation: LogHistory | None = self.ask(read_log_history, path / "validation.jsonl", self.missing)
        self.sheets = sorted(path.glob("previews/step-*.png"))
        previews = (self.ask(read_preview, self.sheets[index]) for index in chosen_times(len(self.sheets)))
        self.previews: list[Thumbnails] = [*filter(None, previews)]
        self.drawn = read_by_class(samples, self.config.data.class_names or []) if samples else []
        self.report = self._report()

    def ask(self, read: Callable[..., Any], *args: Any) -> Any:
        """Return read(*args), or None, with the message in `missing`, if it raises an ElboError."""
        try:
            return read(*args)
        except ElboError as error:
            self.missing.append(str(error))
            return None

    @property
    def name(self) -> str:
        return str(self.path) if self.path.name not in ("", "..") else self.path.resolve().name  # "." is no name for a page

    @property
    def trained_on(self) -> Any:
        """Number of training images, without validation images; "?": unknown."""
        count = self.report.data.get("count", "?")
        return count - self.settings.val_split if isinstance(count, int) else count

    def trains_on(self, file: ResultFile) -> bool:
        """Return whether a result was computed on the training dataset."""
        digest = self.config.data.payload_sha256
        return digest is not None and file.content.get("payload_sha256") == digest

    def _report(self) -> RunReport:
        config, path = self.config, self.path
        status = None if config.source else self.ask(read_status, path)
        network = self.ask(empty_network, config, path / CONFIG)
        return RunReport(
            run=self.name,
            status={} if status is None else {**status.facts(), "time": status.when},
            objective=self.objective.report,
            settings=self.settings.written(),
            source=config.source.json() if config.source else None,
            data=config.data.json(),
            network=config.network | ({} if network is None else {"parameters": count_parameters(network)}),
            environment=self._environment(),
            curves=self.curves,
            errors=_error_map(self.training),
            validation_errors=_error_map(self.validation),
            previews=[row.name for row in self.previews],
            samples=ShownSamples(str(self.samples or ["", *self.sheets][-1]), [row.name for row in self.drawn]),
            commands=[*self._commands()],
            missing=self.missing,
            **{kind: [{"file": str(file.path), **file.content} for file in files] for kind, files in self.results.items()},
        )

    def _environment(self) -> dict[str, Any]:
        config, rates = self.config, curve(self.curves, "images_per_s")[1]
        keys = ("elbo_version", "torch_version", "python_version", "device_name", "processes")
        facts = {
            **{key: getattr(config, key) for key in keys},
            "precision": self.settings.precision,
            "images_per_s": median(rates) if rates else None,
            **(config.init.result_facts() if config.init else {}),
        }
        saved = (self.ask(read_checkpoint, path, False) for path in reversed(checkpoints(self.path)))
        if newest := next(filter(None, saved), None):
            size = sum(file.bytes for file in newest.meta.files.values()) / 1e6
            facts |= {"checkpoint": newest.path.name, "weights": ", ".join(newest.names), "checkpoint_MB": size}
        return {key: value for key, value in facts.items() if value is not None}

    def _packed(self) -> str | None:
        dataset = Dataset(self.dataset, latents=True)
        if dataset.identity().differs(self.config.data):
            raise DataError(
                f"{dataset.path}: has changed since the training, so its pack command is unknown; restore the dataset"
            )
        return dataset.attributes.command

    def _commands(self) -> Iterator[CommandReport]:
        imported = self.config.source is not None
        if not imported and (packed := self.ask(self._packed)):
            yield CommandReport("Pack the images", packed)
        for line in self.config.commands:
            yield CommandReport("Import, as typed" if imported else "Train, as typed", line)
        if not imported:
            again = ["elbo", "train", self.dataset, "--config", self.path / CONFIG, "-o", f"{self.name}-again"]
            does = "Train again with the same settings, whatever the environment says by then"
            yield CommandReport(does, shlex.join(map(str, again)))
        if self.samples:
            with read_samples(self.samples) as reader:
                yield from (CommandReport("Draw these samples", line) for line in drawn_by(reader.made.more))
        for file in self.results["scores"]:
            repeats = file.record.repeats
            lines = drawn_by(*(repeat.facts.made for repeat in repeats))
            yield from (CommandReport(f"Draw the samples of {file.path.name}", line) for line in lines)
            if line := repeats[0].facts.command:
                yield CommandReport(f"Find {file.path.name}", line)


def _error_map(log: LogHistory | None) -> ErrorMap | None:
    if log is None:
        return None
    rounded: list[Any] = [
        [[float(f"{value:.{DIGITS}g}") for value in row] for row in rows.tolist()] for rows in (log.error, log.density)
    ]
    return ErrorMap(log.edges.tolist(), log.images, *rounded)

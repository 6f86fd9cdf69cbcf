"""Read everything that a report on a run shows."""

import base64
import io
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from PIL import Image

from elbocli.data.samples import read_samples
from elbocli.errors import DataError, ElboError
from elbocli.files.checkpoint import CONFIG
from elbocli.files.contact_sheet import CELL, draw_contact_sheet
from elbocli.files.reading import reading
from elbocli.networks import count_parameters
from elbocli.report.describe import images_of
from elbocli.report.log_history import Curve, LogHistory, curve, read_curves, read_log_history
from elbocli.report.objective import RunObjective, read_objective
from elbocli.report.results import RESULTS, ResultFile, drawn_by, read_result, results_in
from elbocli.runs.config import read_run_config
from elbocli.runs.folder import read_status
from elbocli.runs.open import OBJECTIVE, dataset_of, empty_network

TIMES = 7  # largest number of previews
SHEET = 4 * CELL  # largest side of a preview in pixels


class Picture(NamedTuple):
    """A contact sheet. png: PNG image in base64."""

    name: str
    png: str


class CommandReport(NamedTuple):
    """A command line, and its purpose."""

    does: str
    command: str


class RunFacts:
    """Everything that a report on a run shows; None or empty: missing.

    status, data, network, environment: as in the run's files. objective: None: unknown.
    results: result files of elbo, by their name in RESULTS. missing: messages about files that could not be read.
    curves: columns of metrics.jsonl. training, validation: errors by λ.
    sheets: contact sheets of `elbo train`, the oldest first. previews: pictures of some of them.
    drawn: contact sheet of samples by class.
    """

    def __init__(self, path: Path, samples: Path | None = None, files: Sequence[Path] = ()):
        """Read a run.

        samples: file of images to show by class. files: more result files (JSON) of elbo.
        Raises FormatError: `path` is not a run. Raises ElboError: unusable `samples` or `files`.
        """
        self.path = path
        self.config = read_run_config(path)
        self.samples = samples
        self.missing = list[str]()
        self.settings = self.config.settings
        self.data: dict[str, Any] = self.config.data.json()
        by_path = {result.path.resolve(): result for result in [*results_in(path), *map(read_result, files)]}.values()
        self.results = {kind: [result for result in by_path if result.kind == kind] for kind, _ in RESULTS.values()}
        complete = all(map(self.settings.states, OBJECTIVE))
        self.objective: RunObjective | None = self.ask(read_objective, path, self.settings) if complete else None
        self.curves: dict[str, Curve] = self.ask(read_curves, path / "metrics.jsonl", self.missing) or {}
        self.training: LogHistory | None = self.ask(read_log_history, path / "losslog.jsonl", self.missing)
        self.validation: LogHistory | None = self.ask(read_log_history, path / "validation.jsonl", self.missing)
        self.sheets = sorted(path.glob("previews/step-*.png"))
        previews = (self.ask(read_preview, self.sheets[index]) for index in chosen_times(len(self.sheets)))
        self.previews: list[Picture] = [*filter(None, previews)]
        self.drawn = samples and picture_of(str(samples), draw_contact_sheet(*images_of(samples)))
        status = None if self.config.source else self.ask(read_status, path)
        self.status = {} if status is None else {**status.facts(), "time": status.when}
        network = self.ask(empty_network, self.config, path / CONFIG)
        self.network = self.config.network | ({} if network is None else {"parameters": count_parameters(network)})
        self.environment = self._environment()
        self.commands = [*self._commands()]

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
        count = self.data.get("count", "?")
        return count - self.settings.val_split if isinstance(count, int) else count

    def trains_on(self, file: ResultFile) -> bool:
        """Return whether a result was computed on the training dataset."""
        digest = self.config.data.payload_sha256
        return digest is not None and file.content.get("payload_sha256") == digest

    def _environment(self) -> dict[str, Any]:
        config = self.config
        rates = curve(self.curves, "images_per_s")[1]
        keys = ("elbo_version", "torch_version", "python_version", "device_name", "processes")
        facts = {
            **{key: getattr(config, key) for key in keys},
            "precision": self.settings.precision,
            "images_per_s": median(rates) if rates else None,
            **(config.init.result_facts() if config.init else {}),
        }
        return {key: value for key, value in facts.items() if value is not None}

    def _commands(self) -> Iterator[CommandReport]:
        imported = self.config.source is not None
        for line in self.config.commands:
            yield CommandReport("Import, as typed" if imported else "Train, as typed", line)
        if not imported:
            data = dataset_of(self.config.data, self.path)
            again = ["elbo", "train", data, "--config", self.path / CONFIG, "-o", f"{self.name}-again"]
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


# Pictures


def picture_of(name: str, image: Image.Image) -> Picture:
    """Return an image as a Picture."""
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return Picture(name, base64.b64encode(buffer.getvalue()).decode())


def read_preview(path: Path) -> Picture:
    """Return a contact sheet of `elbo train` as a picture, named by its step. Raises DataError."""
    with reading(path, kind=DataError), Image.open(path, formats=["PNG"]) as sheet:
        sheet.thumbnail((SHEET, SHEET), Image.Resampling.LANCZOS)
        return picture_of(path.stem.removeprefix("step-").lstrip("0") or "0", sheet)


def chosen_times(count: int) -> list[int]:
    """Return indices of previews at geometric intervals. count: number of previews."""
    return sorted({round(count ** (place / (TIMES - 1))) - 1 for place in range(TIMES)}) if count else []

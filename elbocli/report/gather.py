"""Everything that a run's folder tells of it, for a page or as JSON; what isn't there, or damaged, is named."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from torch import Tensor

from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, ElboError, FormatError
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.files.latents import ATTRIBUTES
from elbocli.images.samples import read_samples
from elbocli.nn.networks import count_parameters
from elbocli.report import thumbnails as strips
from elbocli.report.log_history import LogHistory, Numbers, curve, read_curves, read_log_history
from elbocli.report.results import Result, read_result, results_in
from elbocli.report.terms import Term, prediction_term, schedule_term, weighting_terms
from elbocli.report.thumbnails import Thumbnails
from elbocli.run.folder import read_status
from elbocli.run.open import empty_network
from elbocli.run.settings import TrainSettings, run_settings

T = TypeVar("T")
DIGITS = 6
"""Significant ones, of numbers on a map."""
MULTISCALE = "; but errors are seen at several resolutions at once (--multiscale), which is no ELBO's"


@dataclass(frozen=True)
class ObjectiveFacts:
    """What was trained: weighting and schedule (None: it adapts) on logsnr low to high, and whether that is an ELBO.

    rising: where the weighting rises.
    """

    weighting: Weighting
    schedule: Schedule | None
    low: float
    high: float
    rising: list[tuple[float, float]]
    verdict: str
    terms: list[Term]


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder shows it. None, or empty, is what isn't there; `missing` says so in sentences.

    status: state, step, steps, images, message, time (UTC). course, held_out: errors of training and validation.
    drawn: samples by class, which come from the file `drawn_from`. commands: (what it does, command line).
    """

    run: str
    status: dict[str, Any]
    settings: TrainSettings
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
    results: list[Result]
    commands: list[tuple[str, str]]
    missing: list[str]

    @property
    def trained_on(self) -> Any:
        """How many images: those held out for validation are none of them."""
        count = self.data.get("count", "?")
        return count - self.settings.val_split if isinstance(count, int) else count

    @property
    def subject(self) -> str:
        """Of what it was trained to be a denoiser."""
        side = self.data.get("image_size", "?")
        kind = "latents" if ATTRIBUTES["convention"] in self.data else "pixels"
        classes = self.network.get("num_classes", 0)
        return f"{side} × {side} {kind}" + (f" in {classes} classes" if classes else "")

    def of_kind(self, kind: str) -> list[Result]:
        """The results of that kind."""
        return [result for result in self.results if result.kind == kind]

    def last(self, name: str) -> float | None:
        """The last value of a curve."""
        values = curve(self.curves, name)[1]
        return values[-1] if values else None

    def json(self) -> dict[str, Any]:
        """All of it but the pictures; numbers that JSON doesn't have are null."""
        told = self.objective
        facts = {
            "run": self.run,
            "status": self.status,
            "objective": told
            and {
                "weighting": told.weighting.spec,
                "monotone": not told.rising,
                "rising": told.rising,
                "verdict": told.verdict,
                "logsnr": [told.low, told.high],
                "terms": [asdict(term) for term in told.terms],
            },
            "settings": asdict(self.settings),
            "data": self.data,
            "network": self.network,
            "environment": self.environment,
            "curves": self.curves,
            "errors": _map(self.course),
            "validation_errors": _map(self.held_out),
            "previews": [strip.name for strip in self.previews],
            "samples": {"file": self.drawn_from, "classes": [strip.name for strip in self.drawn]},
            **{
                kind: [{"file": str(r.path), **r.content} for r in self.of_kind(kind)]
                for kind in ("scores", "bound", "theorem")
            },
            "commands": [{"does": does, "command": line} for does, line in self.commands],
            "missing": self.missing,
        }
        return {key: _finite(value) for key, value in facts.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _map(course: LogHistory | None) -> dict[str, Any] | None:
    if course is None:
        return None

    def plain(values: Tensor) -> list[list[float]]:
        return [[float(f"{v:.{DIGITS}g}") for v in row] for row in values.tolist()]

    return {
        "edges": course.edges.tolist(),
        "images": course.images,
        "eps_mse": plain(course.error),
        "density": plain(course.density),
    }


class _Gatherer:
    """Asks for one thing after the other, and remembers what couldn't be told."""

    def __init__(self, run: Path):
        self.run, self.missing = run, list[str]()
        self.name = str(run) if run.name not in ("", "..") else run.resolve().name  # what is called . names nothing
        self.config = store.read_config(run)
        self.settings = run_settings(self.config["settings"], run / "config.yaml")

    def ask(self, make: Callable[[], T], default: T) -> T:
        """What `make` returns; the default, when it can't."""
        try:
            return make()
        except ElboError as error:
            self.missing.append(str(error))
            return default

    def objective(self) -> ObjectiveFacts:
        s = self.settings
        weighting, schedule = s.weighting_object(), s.schedule_object()
        low, high = max(s.logsnr_min, weighting.support[0]), min(s.logsnr_max, weighting.support[1])
        terms = [*weighting_terms(weighting), schedule_term(schedule), prediction_term(s)]
        rising = weighting.rising(low, high)
        verdict = weighting.verdict(low, high) + (MULTISCALE if s.multiscale else "")
        return ObjectiveFacts(weighting, schedule, s.logsnr_min, s.logsnr_max, rising, verdict, terms)

    def network(self) -> dict[str, Any]:
        return {"parameters": count_parameters(empty_network(self.config, self.run / "config.yaml"))}

    def checkpoint(self) -> dict[str, Any]:
        """The newest one, as it says itself: its files aren't read."""
        for path in reversed(store.checkpoints(self.run)):
            try:
                meta = store.read_checkpoint(path, verify=False)
            except FormatError as error:
                self.missing.append(str(error))
                continue
            size = sum(int(known.get("bytes", 0)) for known in meta.meta["files"].values())
            return {"checkpoint": path.name, "weights": ", ".join(meta.names), "checkpoint_MB": size / 1e6}
        raise DataError(f"{self.run}: no checkpoint yet")

    def packed(self) -> str:
        """The command that packed the run's images."""
        path = Path(str(self.config["data"].get("path")))
        data = Dataset(path, latents=True)
        if data.attributes.get("payload_sha256") != self.config["data"].get("payload_sha256"):
            raise DataError(f"{path}: holds other images now than this run was trained on")
        return str(data.attributes.get("command", ""))

    def class_names(self) -> list[str]:
        names = self.config["data"].get("class_names")
        return [str(name) for name in names] if isinstance(names, list) else []

    def sheets(self) -> list[Path]:
        """The run's previews, the oldest first."""
        return sorted(self.run.glob("previews/step-*.png"))

    def previews(self) -> list[Thumbnails]:
        """The same pictures of the same noise, at several times."""
        sheets, found = self.sheets(), list[Thumbnails]()
        if not sheets:
            self.missing.append(f"{self.run}: no previews yet")
        for index in strips.chosen_times(len(sheets)):
            path = sheets[index]
            images = self.ask(partial(strips.read_sheet, path), None)
            if images is not None:
                step = path.stem.removeprefix("step-").lstrip("0") or "0"
                found.append(strips.thumbnails_of(step, list(images[: strips.ROW])))
        return found

    def drawn(self, samples: Path | None) -> tuple[list[Thumbnails], str]:
        """Samples by class: of a file, whose faults are raised, or of the last preview."""
        if samples is not None:
            return strips.read_by_class(samples, self.class_names()), str(samples)
        for path in reversed(self.sheets()[-1:]):
            images = self.ask(partial(strips.read_sheet, path), None)
            if images is not None:
                classes = self.config["network"].get("num_classes")  # what is none is told by `network`
                labels = strips.preview_labels(classes if isinstance(classes, int) else 0)
                return strips.by_class(images, labels, self.class_names()), str(path)
        return [], ""


def gather(run: Path, samples: Path | None = None, results: Sequence[Path] = ()) -> RunFacts:
    """All facts of a run. samples: a file of images to show by class. results: JSON of 'elbo eval' or 'elbo bound',
    besides those in the run's folder.

    Raises FormatError when it is no run, and ElboError for a file named here that can't be used.
    """
    it = _Gatherer(run)
    given = [read_result(path) for path in dict.fromkeys(results)]
    named = [path.resolve() for path in results]
    found = [*(each for each in results_in(run, it.missing.append) if each.path.resolve() not in named), *given]
    nothing: dict[str, Numbers] = {}
    curves = it.ask(lambda: read_curves(run / "metrics.jsonl", it.missing.append), nothing)
    validates = (run / "validation.jsonl").exists()
    drawn, drawn_from = it.drawn(samples)
    if not validates:
        it.missing.append(f"{run}: no validation; 'elbo train --val' or '--val-split' adds it")
    for kind, how in (("scores", "elbo eval"), ("bound", "elbo bound")):
        if not any(result.kind == kind for result in found):
            it.missing.append(f"{run}: no result of '{how}' in it; name one with --scores FILE")
    return RunFacts(
        run=it.name,
        status=it.ask(lambda: read_status(run), {}),
        settings=it.settings,
        data=it.config["data"],
        network={**it.config["network"], **it.ask(it.network, {})},
        environment=_environment(it, curves),
        objective=it.ask(it.objective, None),
        curves=curves,
        course=it.ask(lambda: read_log_history(run / "losslog.jsonl", it.missing.append), None),
        held_out=it.ask(lambda: read_log_history(run / "validation.jsonl", it.missing.append), None)
        if validates
        else None,
        previews=it.previews(),
        drawn=drawn,
        drawn_from=drawn_from,
        results=found,
        commands=_commands(it, samples, found),
        missing=it.missing,
    )


def _environment(it: _Gatherer, curves: dict[str, Numbers]) -> dict[str, Any]:
    """Where and how it ran: what config.yaml says of its last start, speed, and the newest checkpoint."""
    keys = ("elbo_version", "torch_version", "python_version", "device_name", "processes")
    said = {key: it.config[key] for key in keys if key in it.config}
    rates = curve(curves, "images_per_s")[1]
    speed = {"images_per_s": median(rates)} if rates else {}
    return {**said, "precision": it.settings.precision, **speed, **it.ask(it.checkpoint, {})}


def _commands(it: _Gatherer, samples: Path | None, results: Sequence[Result]) -> list[tuple[str, str]]:
    """Command lines as they were typed, where they were written down."""
    data, run = it.config["data"].get("path"), it.run
    again = shlex.join(["elbo", "train", str(data), "--config", str(run / "config.yaml"), "-o", f"{it.name}-again"])
    found = [
        ("Pack the images", it.ask(it.packed, "")),
        ("Train, as typed", str(it.config.get("command", ""))),
        ("Train again with the same settings, whatever the environment says by then", again),
    ]
    if samples is not None:
        with read_samples(samples) as reader:
            found.append(("Draw these samples", str(reader.about.get("command", ""))))
    for result in results:
        found += [(f"Draw the samples of {result.path.name}", line) for line in result.drawn_by]
        found.append((f"Find {result.path.name}", str(result.content.get("command") or "")))
    return [(does, line) for does, line in found if line]

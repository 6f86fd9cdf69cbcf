"""Describe and verify elbo's files, and choose images for a contact sheet."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from elbocli.data.samples import read_samples
from elbocli.errors import FormatError
from elbocli.files.checkpoint import checkpoints, latest, read_checkpoint, snapshots
from elbocli.files.contact_sheet import MOST_CLASSES, Layout, by_class, lay_out
from elbocli.files.dataset import Dataset
from elbocli.files.features import read_features, read_statistics
from elbocli.files.reading import read_bytes
from elbocli.files.recognise import RESULTS, recognise, wrong_kind
from elbocli.files.records import JSON, parse_json
from elbocli.files.schedule_file import read_table
from elbocli.files.yaml_text import read_yaml
from elbocli.runs.config import RunConfig, read_config
from elbocli.runtime.progress import progress
from elbocli.runtime.table import Table

# images on a contact sheet; images per class, even if the sheet then has more images
SHOWN = 64
LEAST = 8
# keys of a description that are not shown, because their values are redundant or too long
HIDDEN = ("format", "count", "image_size", "num_classes", "coefficients", "log_bytes", "edges")
Facts = dict[str, JSON]


@dataclass(frozen=True)
class Description:
    """Description of a file or folder made by elbo.

    kind: such as "dataset". facts: name → value, as for JSON.
    verified, unverified: names of the digests that were compared with the content, and of those that the file lacks.
    """

    kind: str
    facts: Facts
    verified: list[str] | None = None
    unverified: list[str] | None = None

    def json(self) -> Facts:
        checks = {"verified": self.verified, "unverified": self.unverified}
        return {"is": self.kind, **self.facts, **{name: digests for name, digests in checks.items() if digests is not None}}

    def lines(self) -> list[tuple[str, str]]:
        """Return names and values for people."""
        shown = {name: value for name, value in self.json().items() if value is not None}
        if "time" in shown:
            shown["time"] = datetime.fromisoformat(str(shown["time"])).strftime("%Y-%m-%d %H:%M:%S")
        return [(name, json.dumps(value) if isinstance(value, dict | list) else str(value)) for name, value in shown.items()]


def describe(path: Path) -> Description:
    """Return a description of a file or folder made by elbo. Raises FormatError for any other file, or a damaged file."""
    kind = recognise(path)
    if kind not in DESCRIBERS:
        raise FormatError(wrong_kind(path, "a file made by elbo"))
    facts = {key: value for key, value in DESCRIBERS[kind](path).items() if key not in HIDDEN and value != ""}
    return Description(kind.removeprefix("a ").removeprefix("an "), facts)


def _dataset(path: Path) -> Facts:
    data = Dataset(path, latents=True)
    return {
        "images": len(data),
        "bytes_per_image": round(data.block.nbytes / len(data)),
        "size": data.image_size,
        "channels": data.channels,
        "classes": data.num_classes,
        "bytes": path.stat().st_size,
        **dict(sorted(data.attributes.json().items())),
    }


def _average(path: Path) -> Facts:
    from elbocli.files.tensor_files import read_average_facts

    about, digest = read_average_facts(path)
    return {"bytes": path.stat().st_size, **about.json(), "payload_sha256": digest}


def _features(path: Path) -> Facts:
    saved = read_features(path)
    others = ", ".join(name for name in ("logits", "labels", "spatial") if getattr(saved, name) is not None)
    return {"features": saved.features.shape[1], "other_tensors": others, **saved.about.json()}


def _saved(path: Path) -> Facts:
    saved = read_checkpoint(path, verify=False)
    averages = ", ".join(name for name in saved.names if name != "model")
    return {**saved.meta.json(), "files": ", ".join(saved.meta.files), "averages": averages}


def _run(path: Path) -> Facts:
    from elbocli.report.runs_table import progress_of

    config = read_config(path)
    checkpoint = latest(path)
    step = checkpoint.step if checkpoint else 0
    return {
        "state": "unknown",
        "step": step,
        **progress_of(path, config),
        "saved_step": step,
        "snapshots": len(snapshots(path)),
        "elbo_version": config.elbo_version,
        **(config.source.result_facts() if config.source else {}),
        **config.settings.written(),
        "data": config.data.path,
        "commands": config.commands,
        "data_sha256": config.data.payload_sha256,
        "init": config.init and config.init.json(),
        "parameters_of": config.network,
    }


def _statistics(path: Path) -> Facts:
    statistics = read_statistics(path)
    spatial = statistics.spatial and len(statistics.spatial.mu)
    return {"features": len(statistics.mu), "spatial_features": spatial, **statistics.about.json()}


def _samples(path: Path) -> Facts:
    with read_samples(path) as reader:
        n, height, width, channels = reader.shape
        labels = reader.labels is not None
        return {"images": n, "size": f"{height} x {width}", "channels": channels, "labels": labels, **reader.made.json()}


def _losslog(path: Path) -> Facts:
    from elbocli.files.losslog import read_losslog

    log = read_losslog(path)
    facts = {"intervals": len(log.rows), "images": log.images, "errors": int(log.sums[0].sum())}
    return {**_bins(log.edges.tolist()), **facts, **log.headers[0].json()}


def _bins(edges: list[float]) -> Facts:
    return {"bins": len(edges) - 1, "logsnr": f"{edges[0]:g} to {edges[-1]:g}"}


def _result(path: Path) -> Facts:
    return {key: value for key, value in parse_json(read_bytes(path), path).items() if not isinstance(value, list | dict)}


def _scores(path: Path) -> Facts:
    from elbocli.scoring.result import EvalResult

    scores = EvalResult.of(parse_json(read_bytes(path), path), path).scores
    return {**{name: score.value for name, score in scores.items()}, **_result(path)}


def _config(path: Path) -> Facts:
    return RunConfig.of(read_yaml(path), path).settings.written()


def _schedule(path: Path) -> Facts:
    table = read_table(path)[1]
    return {**table.json(), "knots": len(table.knots)}


DESCRIBERS: dict[str, Callable[[Path], Facts]] = {
    "a dataset": _dataset,
    "a run": _run,
    "a checkpoint of a run": _saved,
    "a snapshot": _saved,
    "a loss log": _losslog,
    "a schedule": _schedule,
    **dict.fromkeys(RESULTS, _result),
    "scores": _scores,
    "a config of a run": _config,
    "samples": _samples,
    "an average of weights": _average,
    "features": _features,
    "statistics": _statistics,
}


def verify(path: Path) -> Description:
    """Check a file or folder against its digests; return a description with the verified digests.

    Raises DataError or FormatError if the content differs from a digest.
    """
    description = describe(path)
    kind = recognise(path)
    if kind == "a dataset":
        digests = Dataset(path, latents=True).verify()
        verified = [name for name in digests if digests[name]]
        return replace(description, verified=verified, unverified=[name for name in digests if name not in verified])
    if kind in ("an average of weights", "features"):
        from elbocli.files.tensor_files import check_tensors

        check_tensors(path)
        return replace(description, verified=["payload_sha256"])
    return replace(description, verified=[f"sha256 of {_verify_folder(path)} files"] if path.is_dir() else [])


def _verify_folder(path: Path) -> int:
    """Verify a run, a checkpoint or a snapshot of averaged weights; return the number of files. Raises DataError, FormatError."""
    files = 0
    folders = [path]
    if recognise(path) == "a run":
        folders = [*checkpoints(path), *snapshots(path)]
    for done, folder in enumerate(folders, 1):
        files += len(read_checkpoint(folder).meta.files)
        progress(done, len(folders), "folder")
    return files


def result_tables(path: Path) -> list[Table]:
    """Return the tables of a result (JSON) of `elbo eval`, `bound` or `compare`. Raises FormatError."""
    from elbocli.bound.result import Bound, FlowLikelihood, Theorem  # they import torch
    from elbocli.scoring.comparison import Comparison
    from elbocli.scoring.result import EvalResult

    kind = recognise(path)
    content = parse_json(read_bytes(path), path)
    if kind == "a comparison":
        return Comparison.of(content, path).tables()
    kinds: dict[str, type[EvalResult | Bound | FlowLikelihood | Theorem]] = {
        "scores": EvalResult,
        "a bound": Bound,
        "a likelihood": FlowLikelihood,
        "a check of the theorem": Theorem,
    }
    return [kinds[kind].of(content, path).table()]


def images_of(path: Path, zoom: int = 0) -> tuple[np.ndarray, Layout]:
    """Return evenly spaced images of a file, uint8 [N, H, W, C], and their layout on a contact sheet.

    path: dataset or samples. zoom: factor of enlargement; 0: suits the image size.
    Raises FormatError or DataError if there are no images, UsageError if the sheet is too large.
    """
    with read_samples(path) as reader:
        classes = by_class(reader.shape[0], reader.labels, reader.class_names, MOST_CLASSES)
        most = max(LEAST, SHOWN // len(classes))
        chosen = list[int]()
        for _, images in classes:
            spread = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)
            chosen += [images[at] for at in spread]
        chosen.sort()  # images of a stream or a compressed file are read in order
        groups = by_class(len(chosen), None if reader.labels is None else reader.labels[chosen], reader.class_names)
        layout = lay_out(reader.shape[1], reader.shape[2], groups, zoom)
        layout.check(path)
        return reader.pick(chosen), layout

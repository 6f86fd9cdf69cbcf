"""Descriptions of elbo's files: what each is and how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elbocli.errors import DataError, FormatError
from elbocli.files.reading import open_file, read_yaml, reading
from elbocli.files.recognise import HDF5_MAGIC, begins_like_tensors, instead, recognise


def _but(known: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in known.items() if key not in keys}


def describe(path: Path) -> dict[str, Any]:
    """Facts about a dataset, run, checkpoint, snapshot, average, loss log, schedule, statistics,
    features or samples, told by content.

    Raises FormatError when it is none of these, or damaged.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FormatError(instead(path, "file of elbo's"))
    with reading(path, kind=DataError), open_file(path) as file:
        head, tensors = file.read(4096), begins_like_tensors(path)
    if tensors:
        return _tensors(path)
    for magic, tell in ((HDF5_MAGIC, _dataset), (b"PK", _npz), (b"\x93NUMPY", _samples)):
        if head.startswith(magic):
            return tell(path)
    if head.lstrip().startswith(b"{"):
        return _optimum(path) if recognise(path) == "an optimum" else _losslog(path)
    if b"format:" in head:
        return _config(path) if b"format: elbo-run" in head else _schedule(path)
    raise FormatError(instead(path, "file of elbo's"))


def _dataset(path: Path) -> dict[str, Any]:
    from elbocli.files.dataset import Dataset

    data = Dataset(path, latents=True)
    latents = data.latent_space is not None
    kind = "samples" if data.attributes.samples is not None else "latents" if latents else "dataset"
    return {
        "is": f"elbo-dataset ({kind})",
        "images": len(data),
        "store": "latents" if latents else data.store,
        "bytes_per_image": round(data.block.nbytes / len(data)),
        "size": data.image_size,
        "channels": data.channels,
        "classes": data.num_classes,
        "bytes": path.stat().st_size,
        **_but(dict(sorted(data.attributes.json().items())), "format", "count", "image_size", "num_classes"),
    }


def _tensors(path: Path) -> dict[str, Any]:
    from elbocli.files.features import is_features, read_features
    from elbocli.files.tensor_files import read_about

    if not is_features(path):
        about, digest = read_about(path)
        facts = _but(about.json(), "coefficients")
        return {"is": "average of weights", "bytes": path.stat().st_size, **facts, "payload_sha256": digest}
    saved = read_features(path)
    held = [name for name in ("logits", "labels", "spatial") if getattr(saved, name) is not None]
    return {
        "is": "features of images",
        "features": saved.features.shape[1],
        "beside": ", ".join(held),
        **saved.about.json(),
    }


def _folder(path: Path) -> dict[str, Any]:
    from elbocli.files.checkpoint import latest, read_checkpoint, read_config, read_snapshot, snapshots
    from elbocli.run.imported import about_source
    from elbocli.run.status import read_status

    if recognise(path) == "a snapshot":
        snapshot = read_snapshot(path, verify=False)
        facts = _but(snapshot.meta.json(), "format", "files")
        return {"is": "snapshot of averages", **facts, "averages": ", ".join(snapshot.names)}
    if (path / "meta.json").exists():
        meta = read_checkpoint(path).meta
        return {"is": "checkpoint", **_but(meta.json(), "format", "files", "log_bytes"), "files": ", ".join(meta.files)}
    if not (path / "config.yaml").exists():
        raise FormatError(instead(path, "file of elbo's"))
    config = read_config(path)
    damaged: list[str] = []
    checkpoint_now = latest(path)
    saved = checkpoint_now.step if checkpoint_now else 0
    state: dict[str, Any] = {"state": "unknown", "step": saved}
    if (path / "status.json").exists():
        try:
            status = read_status(path)
            said = {"message": status.message} if status.message else {}
            state = {"state": status.state, **said, "step": status.step, "as_of": status.when}
        except FormatError as error:
            damaged.append(str(error))
    return {
        "is": "run",
        **state,
        "saved_step": saved,
        "snapshots": len(snapshots(path)),
        "elbo_version": config.elbo_version,
        **about_source(config),
        **config.settings,
        "data": config.data.path,
        **({"init": config.init.json()} if config.init else {}),
        "parameters_of": config.network,
        **({"damaged": damaged} if damaged else {}),
    }


def _npz(path: Path) -> dict[str, Any]:
    from elbocli.files.statistics import is_statistics, read_statistics

    if not is_statistics(path):
        return _samples(path)
    statistics = read_statistics(path)
    spatial = {} if statistics.spatial is None else {"spatial_features": len(statistics.spatial.mu)}
    return {"is": "reference statistics", "features": len(statistics.mu), **spatial, **statistics.about.json()}


def _samples(path: Path) -> dict[str, Any]:
    from elbocli.images.samples import read_samples

    with read_samples(path) as reader:
        n, height, width, channels = reader.shape
        facts = {"is": "samples", "images": n, "size": f"{height} x {width}", "channels": channels}
        return {**facts, "labels": reader.labels is not None, **reader.made.json()}


def _losslog(path: Path) -> dict[str, Any]:
    from elbocli.files.losslog import read_logs

    log = read_logs([path])

    return {
        "is": "loss log",
        "bins": log.sums.shape[1],
        "logsnr": f"{float(log.edges[0]):g} to {float(log.edges[-1]):g}",
        "intervals": log.lines,
        "images": log.images,
        "errors": int(log.sums[0].sum()),
        **({"last line": "half written, left out"} if log.cut else {}),
        **_but(log.header.json(), "format", "version", "edges"),
    }


def _optimum(path: Path) -> dict[str, Any]:
    from elbocli.files.optimum_file import read_optimum

    found = read_optimum(path)
    return {
        "is": "optimum",
        "bins": len(found.eps_mse),
        "logsnr": f"{found.edges[0]:g} to {found.edges[-1]:g}",
        **{key: value for key, value in found.json().items() if not isinstance(value, list | dict) and key != "format"},
    }


def _config(path: Path) -> dict[str, Any]:
    from elbocli.files.checkpoint import checked_config

    return {"is": "config of a run", **checked_config(read_yaml(path), path).settings}


def _schedule(path: Path) -> dict[str, Any]:
    from elbocli.files.schedule_file import read_table

    _, found = read_table(path)
    return {"is": "schedule", "knots": len(found.knots), **_but(found.json(), "format", "knots")}

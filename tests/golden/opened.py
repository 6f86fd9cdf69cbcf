"""Golden files, opened by elbo's own readers: what is made of a file, told as plain values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from elbocli.adapt.fit_log import AdaptReport
from elbocli.adapt.fit_optimum import DataReport
from elbocli.compare.result import Comparison
from elbocli.files import snapshots, strict_json
from elbocli.files.average_file import read_about
from elbocli.files.checkpoint import read_checkpoint, read_config
from elbocli.files.dataset import Dataset
from elbocli.files.dataset_block import plain
from elbocli.files.dataset_writer import open_writer
from elbocli.files.features import read_features
from elbocli.files.grid import PLACES, layout_of
from elbocli.files.losslog import read_logs
from elbocli.files.optimum_file import read_optimum
from elbocli.files.schedule_file import read_table
from elbocli.files.schema import Record
from elbocli.files.statistics import read_statistics
from elbocli.grid.result import GridReport
from elbocli.images.samples import read_samples
from elbocli.nn.presets import load_preset
from elbocli.report.log_history import read_curves
from elbocli.report.result import ComparisonReport, RunReport
from elbocli.report.results import read_result
from elbocli.run.status import read_status

GOLDEN = Path(__file__).parent
CHECKPOINT = "run/checkpoints/step-00000004/meta.json"
SNAPSHOT = "run/snapshots/step-00000004/meta.json"
UNFINISHED = ("unfinished.h5.partial", "unfinished.h5.partial.json")
"""A file in the making, of 3 rows of 5, and its journal."""
LONGEST = 8
"""Values of a list; of a longer one the ends and the sum are told."""
Reader = Callable[[Path], Any]


def unfinished(journal: Path) -> dict[str, Any]:
    """Go on with the file in the making; tell how far it is."""
    with open_writer(journal.with_name("unfinished.h5"), plain((2, 2, 1)), 5, "golden") as writer:
        return {"rows": writer.rows, "warnings": writer.warnings}


def made(path: Path) -> Any:
    """Read how samples say that they were drawn."""
    with read_samples(path) as reader:
        return reader.made


def log(path: Path) -> dict[str, Any]:
    """A loss log: its header and the sums of its rows."""
    found = read_logs([path])
    return {"header": found.header, "sums": found.sums.tolist(), "images": found.images, "lines": found.lines}


def layout(path: Path) -> Any:
    """The places of a picture's images."""
    with Image.open(path) as picture:
        return layout_of(str(picture.text[PLACES]), picture.size, path)  # type: ignore[attr-defined]


def missing(told: str) -> None:
    """Refuse a log of which something is left out."""
    raise AssertionError(told)


def of(schema: type[Record]) -> Reader:
    """The reader of a result that elbo itself doesn't read."""
    return lambda path: schema.of(strict_json.read(path), path)


def result(path: Path) -> Any:
    """A result that `elbo report` reads."""
    return read_result(path).found


FILES: dict[str, tuple[tuple[str, Reader], ...]] = {
    "Journal": ((UNFINISHED[1], unfinished),),
    "AverageFacts": (("average.safetensors", lambda path: read_about(path)[0]),),
    "FeatureFacts": (
        ("features.safetensors", lambda path: read_features(path).about),
        ("statistics.npz", lambda path: read_statistics(path).about),
    ),
    "SamplesAbout": (("samples.npz", made), ("samples.h5", made)),
    "DatasetAttributes": (
        ("data.h5", lambda path: Dataset(path).attributes),
        ("latents.h5", lambda path: Dataset(path, latents=True).attributes),
    ),
    "RunConfig": (("run/config.yaml", lambda path: read_config(path.parent)),),
    "LossLogHeader": (("run/losslog.jsonl", log), ("run/validation.jsonl", log)),
    "CheckpointMeta": ((CHECKPOINT, lambda path: read_checkpoint(path.parent).meta),),
    "SnapshotMeta": ((SNAPSHOT, lambda path: snapshots.read(path.parent).meta),),
    "MetricsRow": (("run/metrics.jsonl", lambda path: read_curves(path, missing)),),
    "PresetFile": (("preset.yaml", lambda path: load_preset(str(path))._replace(name=path.name)),),
    "DataReport": (("data-report.json", of(DataReport)),),
    "AdaptReport": (("adapt-report.json", of(AdaptReport)),),
    "Bound": (("bound.json", result),),
    "Theorem": (("theorem.json", result),),
    "Classification": (("classification.json", result),),
    "Likelihoods": (("likelihoods.json", result),),
    "LatentBound": (("latent-bound.json", result),),
    "Comparison": (("compare.json", of(Comparison)),),
    "EvalResult": (("eval.json", result),),
    "GridReport": (("grid-report.json", of(GridReport)),),
    "Optimum": (("optimum.json", result), ("optimum.json", read_optimum)),
    "RunReport": (("report.json", of(RunReport)),),
    "ComparisonReport": (("report-of-two.json", of(ComparisonReport)),),
    "ScheduleFile": (("schedule.yaml", lambda path: read_table(path)[1]),),
    "RunStatus": (("run/status.json", lambda path: read_status(path.parent)),),
    "GridText": (("samples.png", layout),),
}
"""Schemas, and for each its golden files with their readers. Rows of a loss log are in the file of its header."""


def seen(found: Any) -> Any:
    """Put what a reader made of a file as JSON has it, a field for a key."""
    if isinstance(found, dict):
        return {str(key): seen(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        if len(found) > LONGEST:
            numbers = [each for each in found if isinstance(each, int | float)]
            return {"count": len(found), "first": seen(found[0]), "last": seen(found[-1]), "sum": float(sum(numbers))}
        return [seen(each) for each in found]
    return seen(asdict(found)) if is_dataclass(found) and not isinstance(found, type) else found


def holds(found: Any, known: Any) -> bool:
    """Tell whether all that an earlier version saw is still seen; there may be more."""
    if isinstance(known, dict):
        return isinstance(found, dict) and all(key in found and holds(found[key], known[key]) for key in known)
    if isinstance(known, list):
        return isinstance(found, list) and len(found) == len(known) and all(map(holds, found, known))
    return bool(found == known)


def dumped(content: Any) -> str:
    """JSON for a file of its own."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"

"""Library calls as tests make them: packing, sampling and scoring by typed settings, scripts of examples, and chains of commands."""

import contextlib
import importlib.util
import json
import logging
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import numpy as np
from harness import heard
from torch import Tensor, nn

from elbocli.data import sources as sources_module
from elbocli.data.pack import Encoder, latent_encoder, pack_images
from elbocli.data.registry import Images
from elbocli.data.settings import PrepSettings
from elbocli.files.dataset import Dataset
from elbocli.scoring import scoring
from elbocli.scoring.metrics import metric_options, parse_metrics
from elbocli.scoring.result import EvalResult
from elbocli.scoring.settings import EvalSettings

At = Callable[[int], object]


def listed(sources: Path | Sequence[Path]) -> Sequence[Path]:
    """A source alone as a list of one."""
    return [sources] if isinstance(sources, Path) else sources


def pack(
    sources: Path | Sequence[Path], out: Path, level: int = logging.INFO, at: At = lambda done: None, **settings: Any
) -> list[str]:
    """Pack a source or several. Returns what was said. at: is called with the number of images that are done."""
    with heard(lambda done, *_: at(done), level) as said:
        pack_images(listed(sources), out, PrepSettings(**settings))
    return said


def packed(sources: Path | Sequence[Path], out: Path, **settings: Any) -> Dataset:
    """Pack a source or several. Returns the dataset."""
    pack(sources, out, **settings)
    return Dataset(out)


def encoder_of(folder: Path, size: int = 16, device: str = "cpu", **settings: Any) -> Encoder:
    """The encoder of an autoencoder's folder."""
    return latent_encoder(folder, PrepSettings(size=size, device=device, **settings))


def open_source(sources: Path | Sequence[Path], **options: Any) -> Images:
    """Open a source or several."""
    return sources_module.open_source(listed(sources), **options)


def touch(root: Path, *names: str) -> Path:
    """Make empty files of those names below a folder. Returns the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


class Stopped(Exception):
    """Raised by `stop_after`."""


def stop_after(count: int) -> At:
    """A function for `pack(at=…)` that ends the work in the middle, as an error would, once so many are done."""

    def stop(done: int) -> None:
        if done >= count:
            raise Stopped

    return stop


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside the block no file may grow beyond so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


TINY = "frechet_distance[elbo-tiny]"
SPATIAL = "spatial_frechet_distance[elbo-tiny]"


def result(samples: Any, ref: Any = None, metrics: Any = ("fid",), **settings: Any) -> EvalResult:
    """The result of one set of samples, or of a list of repeats; options of metrics are told from settings by their names."""
    own = {option.name for option in metric_options()}
    options = {key: settings.pop(key) for key in list(settings) if key in own}
    chosen = parse_metrics(",".join(metrics), options)
    sources = samples if isinstance(samples, list) else [samples]
    found = scoring.run(sources, ref, EvalSettings(**{"extractor": "elbo-tiny", "metrics": chosen, **settings}))
    assert found is not None
    return found


def score(samples: Any, ref: Any = None, metrics: Any = ("fid",), **settings: Any) -> dict[str, Any]:
    """Score as `result` does; return the result's JSON with each score's value, and check that the JSON reads back unchanged."""
    text = json.dumps(result(samples, ref, metrics, **settings).json(), allow_nan=False)
    assert json.dumps(EvalResult.of(json.loads(text)).json()) == text
    return with_values(json.loads(text))


def with_values(content: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a result, with the value of each score by its name."""
    repeats = [with_values(repeat) for repeat in content.get("repeats", [])]
    values = {name: score["value"] for name, score in content["scores"].items()}
    return content | values | ({"repeats": repeats} if repeats else {})


def save(path: Path, images: np.ndarray, labels: Any = None, **about: Any) -> Path:
    """Write images as .npy, or as .npz with labels and facts on how they were drawn."""
    if path.suffix == ".npy":
        np.save(path, images)
    else:
        np.savez(path, *[images] if labels is None else [images, labels], about=np.array(json.dumps(about)))
    return path


Elbo = Callable[..., CompletedProcess[bytes]]


def works(elbo: Elbo, run: Path, data: Path, *more: Any) -> dict[str, Any]:
    """Go through all commands in the run's folder's folder; return what the bound said. more: options of every command."""

    def do(*words: Any) -> bytes:
        result = elbo(*words, cwd=run.parent)
        assert result.returncode == 0 and b"Traceback" not in result.stderr, (words, result.stderr.decode())
        return result.stdout

    do("sample", run.name, *more, "-n", 20, "--steps", 2, "-o", "s.npz")
    scored = json.loads(do("eval", "s.npz", "--ref", data, "--extractor", "elbo-tiny", *more))
    assert any(key.startswith("frechet_distance") for key in scored["scores"])
    measure = ("-n", 20, "--draws", 4, *more)
    bound = json.loads(do("bound", run.name, data, *measure, "--log", "log.jsonl"))
    checked = json.loads(do("bound", run.name, data, *measure, "--check", "--weighting", "sigmoid:bias=2"))
    assert checked["agree"] is True
    by_ode = json.loads(do("bound", run.name, data, "-n", 2, *more, "--estimator", "ode:steps=4"))
    assert isfinite(by_ode["nats"])
    assert b"knots:" in do("adapt", "log.jsonl", "--weighting", "sigmoid:bias=2", *more)
    assert b"imported_file" in do("report", run.name, *more)
    assert json.loads(do("info", run.name, "--json"))["imported_file"]
    do("info", run.name, "--verify")
    return bound


def trains(elbo: Elbo, run: Path, data: Path, *more: Any) -> None:
    """Train it further, on images of ten classes, in a new run; and draw from that. more: options of every command."""
    options = {"init": run.name, "steps": 20, "batch-size": 8, "preview-every": 0, "log-every": 5, "label-dropout": 0.1}
    words = ("train", data, "-o", "further", "--conditional", *(f"--{key}={value}" for key, value in options.items()))
    for command in (words, ("sample", "further", "-n", 2, "--steps", 2, "--guidance-scale", 2, "-o", "further.npz")):
        result = elbo(*command, *more, cwd=run.parent)
        assert result.returncode == 0 and b"Traceback" not in result.stderr, (command, result.stderr.decode())
    losses = [json.loads(line)["loss"] for line in (run.parent / "further" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] < 10


def load(path: Path) -> ModuleType:
    """Run a script as a module, whose name is no library's."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


class Classifier(nn.Module):
    """Four pixels as features, and ten logits of them."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = images.double().flatten(1)[:, 20:24]
        return features, features.repeat(1, 3)[:, :10]

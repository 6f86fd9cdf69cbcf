"""Scores of files of images by a tiny network, as `elbo eval` finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.core.metrics import METRICS, asked
from elbocli.evaluate import scoring
from elbocli.evaluate.result import EvalResult
from elbocli.evaluate.settings import EvalSettings

TINY, SPATIAL = "frechet_distance[elbo-tiny]", "spatial_frechet_distance[elbo-tiny]"


def result(samples: Any, ref: Any = None, metrics: Any = ("fid",), **settings: Any) -> EvalResult:
    """The result of one set of samples, or of a list of repeats; options of metrics are told from settings by their names."""
    own = {each.name for metric in METRICS.values() for each in metric.traits.options}
    options = {key: settings.pop(key) for key in list(settings) if key in own}
    chosen = asked(metrics, settings.get("seed", 0), **options)
    sources = samples if isinstance(samples, list) else [samples]
    found = scoring.run(sources, ref, EvalSettings(**{"extractor": "elbo-tiny", "metrics": chosen, **settings}))
    assert found is not None
    return found


def score(samples: Any, ref: Any = None, metrics: Any = ("fid",), **settings: Any) -> dict[str, Any]:
    """The same as JSON, which reads back as it was."""
    text = json.dumps(result(samples, ref, metrics, **settings).json(), allow_nan=False)
    assert json.dumps(EvalResult.of(json.loads(text)).json()) == text
    return json.loads(text)  # type: ignore[no-any-return]


def save(path: Path, images: np.ndarray, labels: Any = None, **about: Any) -> Path:
    """Write images as .npy, or as .npz with labels and facts on how they were drawn."""
    if path.suffix == ".npy":
        np.save(path, images)
    else:
        np.savez(path, *[images] if labels is None else [images, labels], about=np.array(json.dumps(about)))
    return path

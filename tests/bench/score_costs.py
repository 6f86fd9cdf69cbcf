"""Memory and time of every metric, on synthetic features: `python tests/bench/score_costs.py [N [D [METRIC…]]]`.

N images on each side (50,000), D features (2048). Each metric runs in a process of its own. Memory is the most that this
process held, less what it held with the features and without the metric: what the metric itself adds.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from elbocli.core.feature_moments import FeatureMoments, StreamingFeatureMoments
from elbocli.core.metrics import METRICS, Features, asked

CLASSES, SPATIAL = 10, 2023


def moments(values: torch.Tensor) -> FeatureMoments:
    """The mean and the covariance of vectors [N, D], taken a part at a time."""
    sums = StreamingFeatureMoments()
    for part in values.split(sums.ROWS):
        sums.add(part.numpy())
    return sums.moments()


def drawn(n: int, width: int, seed: int, name: str) -> Features:
    """Normal vectors whose spread falls by dimension, with logits and labels; with spatial features for sFID alone."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, width, generator=generator).mul_(torch.arange(1, width + 1) ** -0.5)
    spatial = spatial_values = None
    if name == "sfid":
        spatial_values = torch.randn(n, SPATIAL, generator=generator)
        spatial = moments(spatial_values)
    logits = torch.randn(n, CLASSES, generator=generator) if name in ("is", "accuracy") else None
    return Features(moments(values), values, logits, np.arange(n) % CLASSES, spatial, spatial_values)


def most_held() -> float:
    """GB of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(name: str, n: int, width: int) -> dict[str, float]:
    """Seconds, and GB, of one metric in this process."""
    own, other = drawn(n, width, 0, name), drawn(n, width, 1, name)
    if name == "copying":
        other = replace(other, held_out=drawn(n, width, 2, name))
    before, start = most_held(), time.perf_counter()
    METRICS[name].make(own, other, asked([name])[name])
    return {"seconds": time.perf_counter() - start, "whole": most_held(), "added": most_held() - before}


def main() -> None:
    """Print a line for each metric."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
        return
    n, width = (int(word) for word in (*sys.argv[1:3], *("50000", "2048")[len(sys.argv[1:3]) :]))
    print(f"{n} x {width}, {torch.get_num_threads()} threads")
    print(f"{'metric':<18} {'seconds':>9} {'GB in all':>10} {'GB of its own':>14}")
    for name in sys.argv[3:] or METRICS:
        line = [sys.executable, __file__, "--one", name, str(n), str(width)]
        found = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        print(f"{name:<18} {found['seconds']:9.1f} {found['whole']:10.2f} {found['added']:14.2f}", flush=True)


if __name__ == "__main__":
    main()

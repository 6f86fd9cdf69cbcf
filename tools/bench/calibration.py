"""Compare the standard errors and intervals of `elbo eval` with the spread of scores over many sets of samples.

    python tools/bench/calibration.py --sets 200 -o out.json

Each world draws independent sets of samples, in equal numbers for each of --references: `equal` draws samples like the
references', normal; `apart` moves, scales and mixes them; `clusters` has five clusters of unlike size with Student's t of 10 degrees
of freedom. Logits are linear in the features, and labels are drawn by them. In `classes` the clusters have equal sizes and are the
labels: samples have equally many of each, as `--classes balanced` draws them. Each row has a score's mean over sets, its standard
deviation for a fixed reference, the mean standard error divided by that deviation, with the ratio's own standard error, and the
share of 95 % intervals that contain the mean for that reference. Of a score with an interval only, half its width divided by 1.96 stands for the standard error.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from elbocli.core.estimate import NORMAL_95, standard_error
from elbocli.core.moments import FeatureMoments
from elbocli.scoring.metrics import METRICS, Features, Role, asked

CLASSES = 10
CLUSTERS = 5
LINE = "{:<9} {:>5} {:>5}  {:<42} {:>5} {:>10} {:>10} {:>6} {:>6} {:>6}"
HEADS = ("world", "width", "n", "score", "sets", "mean", "deviation", "ratio", "±", "inside")


class World:
    """Two distributions of features, of samples and of the reference."""

    def __init__(self, name: str, width: int):
        self.name = name
        self.width = width
        random = np.random.default_rng(width)
        self.mix = 1.3 * (np.eye(width) + 0.3 * random.standard_normal((width, width)) / width**0.5)
        self.scales = np.arange(1, width + 1) ** -0.5
        self.centres = 2 * random.standard_normal((CLUSTERS, width)) * self.scales
        self.to_logits = 3 * random.standard_normal((width, CLASSES)) / width**0.5

    def draw(self, n: int, random: np.random.Generator, samples: bool) -> np.ndarray:
        """Return n features, [n, width], of samples or of reference images."""
        if self.name in ("clusters", "classes"):
            which = random.choice(CLUSTERS, n, p=np.arange(1, CLUSTERS + 1) / 15)
            if self.name == "classes":
                which = np.arange(n) % CLUSTERS if samples else random.integers(CLUSTERS, size=n)
            noise = random.standard_t(10, (n, self.width)) * self.scales
            return (self.centres[which] + noise) * (1.05 if samples else 1)
        z = random.standard_normal((n, self.width))
        return z @ self.mix + 0.3 if samples and self.name == "apart" else z

    def features(self, n: int, random: np.random.Generator, samples: bool) -> Features:
        """Return features with logits, labels, and other features as spatial ones."""
        values, spatial = (self.draw(n, random, samples).astype(np.float32) for _ in range(2))
        logits = values @ self.to_logits
        labels = (logits + random.gumbel(size=logits.shape)).argmax(1)
        if self.name == "classes":
            labels = np.arange(n) % CLUSTERS
        return Features(
            FeatureMoments.of(values),
            torch.from_numpy(values),
            torch.from_numpy(logits),
            labels,
            FeatureMoments.of(spatial),
            torch.from_numpy(spatial),
        )


WORLDS = ("equal", "apart", "clusters", "classes")


class Row(NamedTuple):
    """Figures of a score over sets of n samples.

    ratio: mean standard error / deviation. ratio_se: its standard error. inside: share of intervals that contain the mean.
    """

    world: str
    width: int
    n: int
    score: str
    sets: int
    mean: float
    deviation: float
    ratio: float
    ratio_se: float
    inside: float


def rows(world: World, n: int, sets: int, references: int, names: str, n_ref: int, **options: Any) -> Iterator[Row]:
    """Score sets of n samples, and yield a row for each score with a standard error or interval.

    sets: number for all references. A score that most sets have without standard error has no row.
    """
    chosen = asked(names, **options)
    scored = []
    for seed in range(1, references + 1):
        random = np.random.default_rng(seed)
        reference = world.features(n_ref, random, False)
        scored.append(list[dict[str, Any]]())
        for _ in range(sets // references):
            samples = world.features(n, random, True)
            values = dict[str, Any]()
            for name, own in chosen.items():
                values |= METRICS[name].make(samples, reference, own)
            scored[-1].append(values)
    numbers = [number for name in chosen for number in METRICS[name].traits.numbers]
    for number in numbers:
        parts = {part.role: part.key for part in numbers if part.of == number.key}
        if not parts.keys() & {Role.ERROR, Role.INTERVAL}:
            continue
        figures = []  # of each set: score, its mean for this reference, standard error, limits of the interval
        for found in scored:
            of = [one for one in found if all(one[part] is not None for part in parts.values())]
            mean = float(np.mean([one[number.key] for one in of])) if of else 0.0
            for one in of if 2 * len(of) > len(found) else ():
                value = one[number.key]
                error = one.get(parts.get(Role.ERROR))
                ends = one.get(parts.get(Role.INTERVAL))
                error = (ends[1] - ends[0]) / (2 * NORMAL_95) if error is None else error
                ends = ends or [value - NORMAL_95 * error, value + NORMAL_95 * error]
                figures.append((value, mean, error, *ends))
        if not figures:
            continue
        value, mean, error, low, high = np.array(figures).T
        squares = np.square(value - mean)
        deviation = np.sqrt(squares.sum() / (len(figures) - references))
        ratio = error.mean() / deviation
        # a set's effect on the ratio: by its standard error, and by its square in the deviation
        ratio_se = standard_error(error / deviation - ratio * squares / deviation**2 / 2)
        inside = float(((low <= mean) & (mean <= high)).mean())
        yield Row(world.name, world.width, n, number.key, len(value), value.mean(), deviation, ratio, ratio_se, inside)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--n", nargs="+", type=int, default=[500, 2000])
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--references", type=int, default=20)
    parser.add_argument("--n-ref", type=int, default=2000)
    parser.add_argument("--kid-subset-size", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args(words)
    print(LINE.format(*HEADS))
    table = []
    for n in given.n:
        for width in given.widths:
            for name in given.worlds:
                options = {"kid_subset_size": given.kid_subset_size}
                sizes = given.sets, given.references, given.metrics, given.n_ref
                for row in rows(World(name, width), n, *sizes, **options):
                    table.append(row._asdict())
                    shown = [f"{each:.4g}" if isinstance(each, float) else each for each in row]
                    print(LINE.format(*shown), flush=True)
    if given.output:
        given.output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Distances by grid of noise levels, sampler and evaluations: `python tests/bench/grids.py mixture|RUN REF.h5 EXTRACTOR`

mixture: eight normals in eight dimensions with their exact denoiser; Fréchet distance from the exact moments, and the error
of each image against a fine solution. RUN: a trained run; Fréchet distance of its samples from REF.h5 in the extractor's
features. Every grid and sampler has the same noise: in brackets is the difference to cosine ± its standard error. A line of
JSON per cell, then the table, then the evaluations that each grid needs for the distance of the sampler's usual grid at 32.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, bin_edges
from elbocli.core.class_labels import choose_labels
from elbocli.core.equal_error import equal_errors
from elbocli.core.feature_moments import FeatureMoments
from elbocli.core.frechet import Gaussian, frechet_distance
from elbocli.core.frechet_error import influence
from elbocli.core.grids import GRIDS, GridTask
from elbocli.core.local_error import (
    AncestralErrors,
    EquationErrors,
    FineSolution,
    StepErrors,
    rms,
)
from elbocli.core.logsnr import alpha_sigma
from elbocli.core.rounding import to_levels
from elbocli.core.samplers import Denoise
from elbocli.core.samplers.walk import Sampler, parse_sampler, time_grid, walk
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream, walk_noise

EVALUATIONS = (8, 12, 16, 24, 32)
SAMPLERS = ("ddim", "heun", "dpmpp-2m", "ddpm")
GRID_NAMES = ("cosine", "edm-sample", "entropic", "rescaled", "solver")
DIMENSIONS = 8
FLOOR = 0.01
Score = Callable[[Tensor], tuple[float, np.ndarray]]
"""Images → a number, and by how much each image moves it, times their number; nothing where that isn't asked."""


def steps_of(sampler: str, evaluations: int) -> int:
    """The steps of a walk of at most so many evaluations."""
    return (evaluations + 1) // 2 if sampler == "heun" else evaluations


class Mixture:
    """Normals with diagonal covariances, like groups of images: few directions have most of the variance."""

    def __init__(self, within: float = 0.3, count: int = 8):
        draw = torch.Generator().manual_seed(count)
        spectrum = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64).reciprocal()
        spectrum *= 0.25 / spectrum.mean()
        kind: Any = {"generator": draw, "dtype": torch.float64}
        self.mean = torch.randn(count, DIMENSIONS, **kind) * (spectrum * (1 - within)).sqrt()
        self.var = spectrum * within * 2 * torch.rand(count, DIMENSIONS, **kind)

    def denoise(self, z: Tensor, logsnr: float) -> Tensor:
        """The exact E[x | z]."""
        alpha, sigma = alpha_sigma(logsnr)
        total = alpha**2 * self.var + sigma**2
        off = z[:, None] - alpha * self.mean
        chance = (-0.5 * (total.log() + off.square() / total).sum(2)).softmax(1)
        return (chance[:, :, None] * (self.mean + alpha * self.var / total * off)).sum(1)

    def moments(self) -> Gaussian:
        """The exact mean and covariance."""
        mean = self.mean.mean(0)
        scatter = (self.mean - mean).T @ (self.mean - mean) / len(self.mean)
        return FeatureMoments(2, mean.numpy(), (scatter + self.var.mean(0).diag()).numpy())

    def errors(self, low: float, high: float, count: int = 4000) -> ErrorMoments:
        """The moments of the errors that a long log would have."""
        draw = np.random.default_rng(0)
        kind = draw.integers(len(self.mean), size=count)
        normal = torch.from_numpy(draw.standard_normal((2, count, DIMENSIONS)))
        x = self.mean[kind] + self.var[kind].sqrt() * normal[0]
        edges = bin_edges(low, high)
        means = []
        for at in (0.5 * (edges[1:] + edges[:-1])).tolist():
            alpha, sigma = alpha_sigma(at)
            x_hat = self.denoise(alpha * x + sigma * normal[1], at)
            means.append(float((x - x_hat).square().mean()) * math.exp(at))
        mean = torch.tensor(means, dtype=torch.float64)
        return ErrorMoments(edges, torch.full_like(mean, 1e5), mean, mean.square() * 1.3)


class Bench:
    """Samplers on one denoiser, from one noise z, on every grid."""

    def __init__(self, low: float, high: float, moments: ErrorMoments, pilot: Tensor, pilot_denoise: Denoise):
        self.low, self.high, self.moments = low, high, moments
        self.solution, self.denoise = FineSolution(pilot_denoise, pilot, low, high, 128), pilot_denoise

    def even(self, name: str, steps: int) -> list[float]:
        """Levels of a declared schedule."""
        return time_grid(parse_schedule(name, self.low, self.high, clip=True), steps)[:-1]

    def errors(self, sampler: Sampler) -> StepErrors:
        """The errors of a sampler's steps, as `elbo grid` has them."""
        if sampler.declared.traits.ancestral:
            return AncestralErrors(self.moments)
        return EquationErrors(sampler, self.denoise, self.solution)

    def levels(self, name: str, sampler: Sampler, steps: int) -> list[float]:
        """Levels of any grid."""
        if name not in GRIDS:
            return self.even(name, steps)

        def equal() -> list[float]:
            return equal_errors(self.errors(sampler), self.even("cosine", steps), self.high).grid

        return time_grid(GRIDS[name](GridTask(lambda: self.moments, FLOOR, equal)), steps)[:-1]


def compare(
    bench: Bench,
    drawn: Callable[[Sampler, list[float]], Tensor],
    score: Score,
    samplers: tuple[str, ...] = SAMPLERS,
    evaluations: tuple[int, ...] = EVALUATIONS,
) -> None:
    """Score every cell; print each as it comes, then the tables; the second of them needs the cells of 32 evaluations."""
    found: dict[tuple[str, int, str], tuple[float, np.ndarray]] = {}
    for spec, count, name in product(samplers, evaluations, GRID_NAMES):
        sampler = parse_sampler(spec)
        levels = bench.levels(name, sampler, steps_of(spec, count))
        found[spec, count, name] = value, moved = score(drawn(sampler, [*levels, math.inf]))
        usual = found[spec, count, GRID_NAMES[0]]
        cell = {"sampler": spec, "evaluations": count, "grid": name, "value": value, "se": error_of(moved)}
        print(
            json.dumps({**cell, "less_cosine": value - usual[0], "less_cosine_se": error_of(moved - usual[1])}),
            flush=True,
        )
    print("\n| sampler | evaluations | " + " | ".join(GRID_NAMES) + " |\n|---|---" + "|---" * len(GRID_NAMES) + "|")
    for spec, count in product(samplers, evaluations):
        value, moved = found[spec, count, GRID_NAMES[0]]
        cells = [f"{value:.4g}" + (f" ± {error_of(moved):.2g}" if len(moved) else "")]
        for name in GRID_NAMES[1:]:
            other, its = found[spec, count, name]
            cells.append(
                f"{other:.4g}" + (f" ({other - value:+.2g} ± {error_of(its - moved):.1g})" if len(moved) else "")
            )
        print(f"| `{spec}` | {count} | " + " | ".join(cells) + " |")
    if 32 not in evaluations:
        return
    print(
        "\n| sampler | usual grid at 32 | " + " | ".join(GRID_NAMES) + " |\n|---|---" + "|---" * len(GRID_NAMES) + "|"
    )
    for spec in samplers:
        goal = found[spec, 32, parse_sampler(spec).usual.grid][0]
        curves = [[(count, found[spec, count, name][0]) for count in evaluations] for name in GRID_NAMES]
        print(f"| `{spec}` | {goal:.4g} | " + " | ".join(needed(curve, goal) for curve in curves) + " |")


def error_of(moved: np.ndarray) -> float:
    """The standard error of a distance, or of the difference of two of images from the same noise. moved: by how much each image
    moves it, times their number.
    """
    return float(moved.std(ddof=1) / math.sqrt(len(moved))) if len(moved) else 0.0


def needed(curve: list[tuple[int, float]], goal: float) -> str:
    """Evaluations at which a curve first reaches the goal, linear in the logarithms between two of them."""
    if curve[0][1] <= goal:
        return f"≤ {curve[0][0]}"
    for (a, above), (b, below) in pairwise(curve):
        if below <= goal:
            return f"{math.exp(math.log(a) + math.log(b / a) * math.log(above / goal) / math.log(above / below)):.0f}"
    return f"> {curve[-1][0]}"


def on_mixture(n: int) -> None:
    """Two tables: Fréchet distance from the exact moments; root-mean-square error against a fine solution."""
    mixture, low, high = Mixture(), -10.0, 10.0
    z = Stream(0, "noise").normal(range(n), (DIMENSIONS,)).double()
    pilot = Stream(1, "noise").normal(range(96), (DIMENSIONS,)).double()
    bench = Bench(low, high, mixture.errors(low, high), pilot, mixture.denoise)
    truth, exact = FineSolution(mixture.denoise, z[:4000], low, high, 128).end, mixture.moments()

    def drawn(sampler: Sampler, grid: list[float]) -> Tensor:
        noise = walk_noise(0, range(n), (DIMENSIONS,))
        return walk(sampler, z, grid, mixture.denoise, lambda: noise().double())

    def distance(x: Tensor) -> tuple[float, np.ndarray]:
        own = FeatureMoments.of(x.numpy())
        return frechet_distance(own, exact), influence(x.numpy(), own, exact)

    compare(bench, drawn, distance)
    print("\nthe same, as the error of each image:")
    compare(bench, drawn, lambda x: (rms(x[: len(truth)] - truth), np.empty(0)), SAMPLERS[:3])


def on_run(
    path: Path,
    reference: Path,
    extractor_file: str,
    n: int,
    samplers: tuple[str, ...],
    evaluations: tuple[int, ...],
    batch: int = 250,
) -> None:
    """The table of a trained run."""
    import elbocli
    from elbocli.files.losslog import read_logs
    from elbocli.nn.denoiser import Denoiser
    from elbocli.nn.extractors import make_extractor

    run, data = elbocli.open_run(path), elbocli.open_dataset(reference)
    extractor = make_extractor(extractor_file, None, torch.device("cpu"))
    config, low, high = run.network.config, run.settings.logsnr_min, run.settings.logsnr_max
    shape = config.image_size, config.image_size, config.image_channels

    def features(images: Tensor) -> np.ndarray:
        found, _ = extractor(images.permute(0, 3, 1, 2).contiguous())
        return found.numpy()

    def denoiser(indices: range) -> Denoiser:
        chosen = choose_labels("balanced", n, config.num_classes, 0)
        labels = None if chosen is None else torch.from_numpy(chosen[list(indices)]).long()
        return Denoiser(run.network, run.prediction, labels=labels)

    def drawn(sampler: Sampler, grid: list[float]) -> Tensor:
        parts = []
        for start in range(0, n, batch):
            indices = range(start, min(start + batch, n))
            noise = walk_noise(0, indices, shape)
            x = walk(
                sampler,
                noise().permute(0, 3, 1, 2),
                grid,
                denoiser(indices),
                lambda noise=noise: noise().permute(0, 3, 1, 2),
            )
            parts.append(to_levels(x))
        return torch.cat(parts)

    log = read_logs([path])
    theirs = FeatureMoments.of(np.concatenate([features(torch.from_numpy(part)) for part in data.batches(500)]))

    def distance(images: Tensor) -> tuple[float, np.ndarray]:
        values = features(images)
        own = FeatureMoments.of(values)
        return frechet_distance(own, theirs), influence(values.astype(np.float64), own, theirs)

    pilot = Stream(1, "noise").normal(range(32), shape).permute(0, 3, 1, 2)
    moments = ErrorMoments.of_sums(log.edges, log.sums)
    compare(Bench(low, high, moments, pilot, denoiser(range(32))), drawn, distance, samplers, evaluations)


@torch.inference_mode()
def main() -> None:
    """Parse, and do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", help="mixture, or the folder of a run")
    parser.add_argument("reference", nargs="?", type=Path)
    parser.add_argument("extractor", nargs="?")
    parser.add_argument("-n", type=int, help="images; 20000 of a mixture, 1000 of a run")
    parser.add_argument(
        "--sampler", action="append", choices=SAMPLERS, help="on a run; may be repeated; all unless given"
    )
    parser.add_argument(
        "--evaluations", action="append", type=int, help="on a run; may be repeated; 8, 12, 16, 24, 32 unless given"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "mixture":
        on_mixture(args.n or 20_000)
    else:
        asked = tuple(args.sampler or SAMPLERS), tuple(sorted(args.evaluations or EVALUATIONS))
        on_run(Path(args.what), args.reference, args.extractor, args.n or 1000, *asked)


if __name__ == "__main__":
    main()

"""Does a fitted schedule save steps? `python tests/bench/schedule_pays.py [--seeds 0 1 …] [--steps N] [--json]`

Trains the demo's model (preset digits) twice a seed, alike but for the schedule, and asks how many steps each takes to
the same weighted loss on the demo's test images. That loss is of the averaged weights, with the same noise levels, noise
and images for both runs, so that they are compared and not their luck. The thresholds: what both reach in the end (the
worse of the two last losses), and what the reference had after a half and a quarter of the steps. Where a curve first
crosses is interpolated; a ratio above 1 is in favour of the schedule.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from elbocli.core.adaptive import ErrorMoments, bin_edges, fit_schedule
from elbocli.core.loss import denoising_losses
from elbocli.core.streams import Stream
from elbocli.files.dataset import Dataset
from elbocli.main import share_cores
from elbocli.prep import pack as prep
from elbocli.run.settings import resolve
from elbocli.train.state import TrainState
from elbocli.train.step import update

MAKE_DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "make_digits.py"
REFERENCE = "cosine"
PARTS = {"end": 1.0, "half": 0.5, "quarter": 0.25}
Curve = list[tuple[int, float]]


def pack(folder: Path) -> None:
    """train.h5 and test.h5 of the demo in that folder, unless they are there."""
    if not (folder / "test.h5").exists():
        subprocess.run([sys.executable, MAKE_DIGITS, folder / "digits"], check=True, stdout=sys.stderr)
        for name in ("train", "test"):
            settings = prep.Settings(size=8, channels=1)
            for _ in prep.run(folder / "digits" / name, folder / f"{name}.h5", settings):
                pass


class Validation:
    """The weighted loss of a run's averaged weights on all images, each at `draws` fixed noise levels.

    The levels are a comb in the time of a schedule that suits the weighting, whatever schedule was trained on:
    fitted to errors that go like sigmoid(λ/2). Importance weights make up for it.
    """

    def __init__(self, dataset: Dataset, state: TrainState, draws: int, batch: int = 512):
        self.batch, settings, count = batch, state.settings, draws * len(dataset)
        edges = bin_edges(settings.logsnr_min, settings.logsnr_max)
        mean = (0.25 * (edges[1:] + edges[:-1])).sigmoid()
        guess = ErrorMoments(edges, torch.full_like(mean, 1e12), mean, 2 * mean.square())
        self.schedule = fit_schedule(guess, state.weighting)
        t = torch.from_numpy((Stream(0, "validation order").permutation(0, count) + 0.5) / count)
        self.logsnr = self.schedule.logsnr(t)
        rows = np.tile(np.arange(len(dataset)), draws)
        self.x = torch.from_numpy(dataset.batch(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.eps = Stream(0, "validation noise").normal(range(count), self.x.shape[1:])
        self.labels = torch.from_numpy(dataset.labels[rows]) if state.batches.conditional else None

    @torch.no_grad()
    def loss(self, state: TrainState) -> float:
        """Nats per dimension."""
        network, total = state.network.eval(), 0.0

        def average(*inputs: Any) -> torch.Tensor:
            return torch.func.functional_call(network, state.ema[0].tensors, inputs)  # type: ignore[no-any-return]

        for part in torch.arange(len(self.x)).split(self.batch):
            x, eps = self.x[part], self.eps[part]
            how = self.logsnr[part], state.weighting, self.schedule, state.prediction
            labels = None if self.labels is None else self.labels[part]
            total += float(denoising_losses(average, x, eps, labels, *how).loss.double().sum())
        network.train()
        return total / len(self.x)


def train(data: Path, settings: dict[str, Any], every: int, draws: int, say: Callable[[str], None]) -> Curve:
    """(step, validation loss) every `every` steps, the first after none; as `elbo train` trains."""
    dataset = Dataset(data / "train.h5")
    state = TrainState(resolve(settings, dataset), dataset)
    validation = Validation(Dataset(data / "test.h5"), state, draws)
    curve, begin = [(0, validation.loss(state))], time.monotonic()
    while state.steps_done < settings["steps"]:
        update(state)
        if state.steps_done % state.settings.log_every == 0:
            state.interval()
        if state.steps_done % every == 0 or state.steps_done == settings["steps"]:
            curve.append((state.steps_done, validation.loss(state)))
            say(f"step {state.steps_done}, loss {curve[-1][1]:.6f}, {time.monotonic() - begin:.0f} s")
    return curve


def first_crossing(curve: Curve, threshold: float) -> float | None:
    """Steps, interpolated, until the loss is first at the threshold or below; None if never."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= threshold < high:
            return before + (after - before) * (high - threshold) / (high - low)
    return None


def loss_at(curve: Curve, step: float) -> float:
    """Interpolated."""
    steps, values = zip(*curve)
    return float(np.interp(step, steps, values))


def compare(reference: Curve, other: Curve) -> dict[str, dict[str, float | None]]:
    """For each threshold: the loss, steps of both, and steps of the reference over steps of the other."""
    rows = {}
    for name, part in PARTS.items():
        threshold = loss_at(reference, part * reference[-1][0])
        if part == 1:
            threshold = max(threshold, other[-1][1])
        a, b = first_crossing(reference, threshold), first_crossing(other, threshold)
        rows[name] = {"loss": threshold, "reference": a, "other": b, "ratio": a / b if a and b else None}
    return rows


def spread(ratios: list[float | None]) -> dict[str, float | None]:
    """Median and range of those that there are."""
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return {"median": None, "min": None, "max": None}
    return {"median": median(known), "min": min(known), "max": max(known)}


def number(value: float | None) -> str:
    """For the table."""
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--every", type=int, default=20, help="steps between validations")
    parser.add_argument("--draws", type=int, default=4, help="noise levels an image, in validation")
    parser.add_argument("--weighting", default="sigmoid:bias=2")
    parser.add_argument("--schedule", default="adaptive", help=f"compared with {REFERENCE}")
    parser.add_argument("--data", type=Path, help="folder to keep train.h5 and test.h5 in, made if they are missing")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    share_cores()
    torch.set_num_threads(options.threads)
    table = "{:<8}" + "{:>12}" * (2 + len(PARTS))
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data or Path(temporary)
        data.mkdir(parents=True, exist_ok=True)
        pack(data)
        if not options.json:
            print(f"steps under {REFERENCE} over steps under {options.schedule}, by the loss to reach")
            print(table.format("seed", REFERENCE, options.schedule[:11], *PARTS))
        for seed in options.seeds:
            curves = []
            for schedule in (REFERENCE, options.schedule):
                settings = {
                    "preset": "digits",
                    "weighting": options.weighting,
                    "schedule": schedule,
                    "steps": options.steps,
                    "seed": seed,
                    "device": "cpu",
                }
                lead = f"seed {seed}, {schedule}: "
                say = lambda text, lead=lead: print(lead + text, file=sys.stderr, flush=True)  # noqa: E731
                curves.append(train(data, settings, options.every, options.draws, say))
            found = compare(*curves)
            runs.append({"seed": seed, "thresholds": found, REFERENCE: curves[0], options.schedule: curves[1]})
            if not options.json:
                ratios = (number(found[name]["ratio"]) for name in PARTS)
                print(table.format(seed, *(f"{c[-1][1]:.6f}" for c in curves), *ratios), flush=True)
    summary = {name: spread([run["thresholds"][name]["ratio"] for run in runs]) for name in PARTS}
    if options.json:
        about = {name: getattr(options, name) for name in ("weighting", "schedule", "steps", "every", "draws", "seeds")}
        print(json.dumps({"reference": REFERENCE, **about, "ratios": summary, "runs": runs}, indent=1))
    else:
        for word in ("median", "min", "max"):
            print(table.format(word, "", "", *(number(summary[name][word]) for name in PARTS)))


if __name__ == "__main__":
    main()

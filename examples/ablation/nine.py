"""JiT's nine: three predictions under three losses, for large and small patches, on Fashion-MNIST.

    python nine.py FOLDER --data FASHION        train, draw, score and tabulate; after an interruption it skips finished parts
    python nine.py results.jsonl                only tabulate

FASHION has the dataset's four files. "Back to Basics: Let Denoising Generative Models Denoise" (Li & He 2025,
arXiv:2511.13720) trains networks that predict the noise, the clean image or the velocity, each with the squared error of each of the
three as loss. It finds that large patches need a prediction of the clean image, whatever the loss. Here all networks see
(1-t) x + t eps, all train on the same schedule for the same number of steps, and a loss is the weighting TARGET-mse@SCHEDULE.
A patch of 14 pixels has 196 numbers, more than the network's width, as in the paper's hardest case; one of 4 has 16.

Prints Markdown and writes FOLDER/results.jsonl. Each training uses elbo's own commands: train, sample | eval.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ablation import DIGITS, elbo, machine, recorded, spread

PRESET = "small64-jit"
BOTTLENECK = 64
"""Width of the preset's transformer, so that the bottleneck keeps what the width can hold."""
PREDICTIONS = {"x": "x-path", "eps": "eps-path", "v": "u-path"}
"""The paper's name → elbo's. The paper's v is x - eps, elbo's u with its sign changed."""
LOSSES = {"x": "x-mse", "eps": "eps-mse", "v": "u-mse"}
SCHEDULE = "logit-normal:mean=0,std=1.2"
"""The preset's: less noise than the paper's, which is for 256 pixels."""
PATCHES = (14, 7, 4)


class Cell(NamedTuple):
    """A training. prediction, loss: x, eps or v."""

    patch: int
    prediction: str
    loss: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return "-".join(map(str, self))


def cells(patches: tuple[int, ...], seeds: int) -> list[Cell]:
    """Return all trainings, a seed at a time."""
    combinations = itertools.product(range(seeds), patches, PREDICTIONS, LOSSES)
    return [Cell(patch, prediction, loss, seed) for seed, patch, prediction, loss in combinations]


def prepare(folder: Path, downloaded: Path, epochs: int) -> None:
    """Pack the images, and train the classifier whose features are compared."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "classifier.pt2").exists():
        for part, prefix in (("train", "train"), ("test", "t10k")):
            source = next(downloaded.glob(f"{prefix}-images-idx3-ubyte*"), downloaded / f"{prefix}-images-idx3-ubyte")
            elbo("prep", "-q", source, folder / f"{part}.h5", "--overwrite")
        files = [folder / name for name in ("train.h5", "test.h5", "classifier.pt2")]
        line = [sys.executable, DIGITS / "make_classifier.py", *files, "--epochs", str(epochs)]
        subprocess.run(line, check=True, stdout=sys.stderr)


def measure(folder: Path, cell: Cell, options: argparse.Namespace) -> None:
    """Train a cell and score its images, if that isn't done: results/NAME.json. An error is a result too."""
    out = folder / "results" / f"{cell.name}.json"
    if out.exists():
        return
    run = folder / "runs" / cell.name
    result: dict[str, Any] = dict(cell._asdict(), steps=options.steps, schedule=options.schedule, machine=machine())
    words: list[Any] = ["--preset", PRESET, "--set", f"network.bottleneck={BOTTLENECK}", "--set", f"network.patch={cell.patch}"]
    words += ["--steps", options.steps, "--seed", cell.seed, "--preview-every", "none"]
    words += ["--prediction", PREDICTIONS[cell.prediction], "--weighting", f"{LOSSES[cell.loss]}@{options.schedule}"]
    words += ["--schedule", options.schedule, "--save-every", options.steps, "--keep-last", 1]
    drawn = ["-n", options.samples, "--sampler", "heun", "--steps", options.walk, "--seed", cell.seed, "--batch-size", 250]
    scored = ["--extractor", folder / "classifier.pt2", "--metrics", "fid,accuracy", "--classes", "balanced"]
    with recorded(result, out) as begin:
        elbo("train", "-q", folder / "train.h5", "-o", run, *words)
        result["trained"] = round(time.monotonic() - begin, 1)
        images = elbo("sample", "-q", run, *drawn)
        scores = json.loads(elbo("eval", "-q", "-", "--ref", folder / "test.h5", *scored, feed=images))
        distance = next(value for key, value in scores.items() if key.startswith("frechet_distance["))
        result |= {"frechet": distance, "accuracy": scores["accuracy"]}


def gathered(path: Path) -> list[dict[str, Any]]:
    """Return all results of a folder, or of the file that was made of one, in order."""
    texts = [each.read_text() for each in (path / "results").glob("*.json")] if path.is_dir() else path.read_text().splitlines()
    order = [*PREDICTIONS]
    key = lambda row: (-row["patch"], order.index(row["prediction"]), order.index(row["loss"]), row["seed"])  # noqa: E731
    return sorted(map(json.loads, texts), key=key)


def entry(rows: list[dict[str, Any]]) -> str:
    """Return a table's entry for the seeds of a training: mean distance ± standard deviation."""
    values = [row["frechet"] for row in rows if "failed" not in row]
    failed = f" ({len(rows) - len(values)} of {len(rows)} failed)" if len(values) < len(rows) else ""
    return (spread(values, 1) if values else "") + failed


def table(rows: list[dict[str, Any]], patch: int) -> str:
    """Return a Markdown table of the distances for one patch size: a row per prediction, a column per loss."""
    lines = [[f"patch {patch}", *(f"{loss} loss" for loss in LOSSES)], ["---"] * 4]
    for prediction in PREDICTIONS:
        groups = [
            [row for row in rows if (row["patch"], row["prediction"], row["loss"]) == (patch, prediction, loss)]
            for loss in LOSSES
        ]
        lines.append([f"{prediction} prediction", *map(entry, groups)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the tables as Markdown, and the time that they took."""
    steps, schedules, machines = (", ".join(sorted({str(row[key]) for row in rows})) for key in ("steps", "schedule", "machine"))
    head = f"{len(rows)} trainings of {steps} steps on {schedules}, {sum(row['seconds'] for row in rows) / 3600:.1f} hours of one core, on {machines}."
    patches = sorted({row["patch"] for row in rows}, reverse=True)
    return "\n\n".join([head, *(table(rows, patch) for patch in patches)])


def work(folder: Path, todo: list[Cell], options: argparse.Namespace) -> None:
    """Measure all cells, `options.jobs` at a time."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(measure, folder, cell, options) for cell in todo]
        try:
            for done, (cell, future) in enumerate(zip(todo, futures), 1):
                future.result()
                print(f"nine: {done}/{len(todo)} {cell.name}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder to work in, or results.jsonl to tabulate")
    parser.add_argument(
        "--data", type=Path, default=Path("fashion-mnist"), help="folder of the four files (default: fashion-mnist)"
    )
    parser.add_argument("--patches", type=int, nargs="+", default=PATCHES, help="sides in pixels (default: 14 7 4)")
    parser.add_argument("--steps", type=int, default=1500, help="of each training (default: 1500)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--schedule", default=SCHEDULE, help=f"of the noise levels, for all (default: {SCHEDULE})")
    parser.add_argument("--samples", type=int, default=2000, help="images to score (default: 2000)")
    parser.add_argument("--walk", type=int, default=18, help="steps of heun (default: 18)")
    parser.add_argument("--epochs", type=int, default=3, help="of the classifier (default: 3)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time (default: one a core)")
    return parser.parse_args(words)


def main() -> None:
    """Train and score all nine combinations, then print the tables."""
    options = parsed()
    if not options.path.is_file():
        prepare(options.path, options.data, options.epochs)
        work(options.path, cells(tuple(options.patches), options.seeds), options)
        rows = gathered(options.path)
        (options.path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(summary(gathered(options.path)))


if __name__ == "__main__":
    main()

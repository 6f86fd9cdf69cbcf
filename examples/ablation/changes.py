"""Compare settings of `elbo train` at equal CPU time, over seeds; RESULTS.jsonl collects data sets, and an interrupted comparison goes on.

    python changes.py RESULTS.jsonl digits train.h5 test.h5 classifier.pt2 --seconds 40 \
        --change "preset: --preset digits" --change "adamw: --preset digits --optimizer adamw --lr 2e-3"
    python changes.py RESULTS.jsonl    # the table of docs/measurements.md
    python changes.py RESULTS.jsonl --against edm    # ratios of distances to those of the change named edm, with 95 % intervals

Each --change has a name and options of elbo train. Its number of steps fits into the time on one core, by the CPU time of two short
trainings, which other work on the machine changes little. A change that doesn't alter the cost of a step can take the steps of another
one: "adaptive=preset: --preset digits --schedule adaptive". classifier.pt2 is made by examples/digits/make_classifier.py.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from statistics import mean, stdev
from typing import Any

SAMPLER = "dpmpp-2m"
COUNT = 100
"""Steps of the longer of the two short trainings."""
ELBO = [sys.executable, "-m", "elbocli"]
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1"}
SCORES = {"distance": "{:.1f}", "accuracy": "{:.3f}", "bpd": "{:.2f}"}
"""Score → format of its mean."""


def elbo(*words: Any, feed: Path | str = os.devnull) -> dict[str, Any]:
    """Run a command of elbo's. feed: file for its standard input. Returns the JSON object that it prints, or {}."""
    with open(feed, "rb") as given:
        said = subprocess.run([*ELBO, *map(str, words)], stdin=given, stdout=subprocess.PIPE, check=True, env=ONE_CORE).stdout
    return json.loads(said) if said.startswith(b"{") else {}


def cpu_seconds(data: Path, options: Sequence[str], steps: int) -> float:
    """Return the CPU time of a training."""
    with tempfile.TemporaryDirectory() as folder:
        line = [*ELBO, "train", "-q", str(data), "-o", f"{folder}/run", "--steps", str(steps), *options]
        _, status, used = os.wait4(subprocess.Popen(line, stdout=subprocess.DEVNULL, env=ONE_CORE).pid, 0)
    if status:
        sys.exit(f"changes.py: error: {shlex.join(line)} failed")
    return used.ru_utime + used.ru_stime


def steps_within(seconds: float, data: Path, options: Sequence[str]) -> int:
    """Return the number of steps that fit into a time."""
    first = cpu_seconds(data, options, 1)
    return max(1, int((seconds - first) * COUNT / (cpu_seconds(data, options, COUNT + 1) - first)))


def measure(given: argparse.Namespace, steps: int, seed: int, options: Sequence[str]) -> dict[str, float]:
    """Train, draw and score. Returns distance, accuracy (if the classifier knows the classes) and bits/dim by name."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        images = Path(folder, "images.npy")
        elbo("train", "-q", given.train, "-o", run, "--steps", steps, "--seed", seed, *options)
        elbo("sample", "-q", run, "-n", given.images, "--sampler", SAMPLER, "--seed", seed, "-o", images)
        metrics = ("--metrics", "fid,accuracy", "--classes", "balanced") if given.classes else ("--metrics", "fid")
        scores = elbo("eval", "-q", "-", "--ref", given.test, "--extractor", given.classifier, *metrics, feed=images)
        scores |= elbo("bound", "-q", run, given.test, "-n", given.bound_images)
    scores["distance"] = next(value for name, value in scores.items() if name.startswith("frechet_distance["))
    return {name: scores[name] for name in SCORES if name in scores}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return means over seeds as Markdown, ± the standard deviation of distances."""
    names, changes = ([*dict.fromkeys(row[key] for row in rows)] for key in ("data", "change"))
    scores = {name: [score for score in SCORES if any(row["data"] == name and score in row for row in rows)] for name in names}
    titles = [f"{name}: {score}" if score == "distance" else score for name in names for score in scores[name]]
    lines = [["change", *titles], ["---"] * (1 + len(titles))]
    for change in changes:
        cells = []
        for name in names:
            found = [row for row in rows if (row["data"], row["change"]) == (name, change)]
            for score in scores[name]:
                values = [row[score] for row in found]
                form = "{:.0f}" if values and mean(values) > 1000 else SCORES[score]
                spread = "±" + form.format(stdev(values)) if score == "distance" and len(values) > 1 else ""
                cells.append(form.format(mean(values)) + spread if values else "")
        lines.append([change, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("bpd", "bits/dim")


def ratios(rows: Sequence[dict[str, Any]], base: str) -> str:
    """Return a Markdown table of distances divided by those of the change `base`.

    Each ratio is a geometric mean over the seeds that the table has for both changes. Several seeds also give a 95 % interval, by
    Student's t.
    """
    from scipy.stats import t

    names, changes = ([*dict.fromkeys(row[key] for row in rows)] for key in ("data", "change"))
    distance = {(row["data"], row["change"], row["seed"]): row["distance"] for row in rows}
    lines = [["change", *names], ["---"] * (1 + len(names))]
    for change in (change for change in changes if change != base):
        lines.append([change])
        for name in names:
            pairs = [
                (value, distance.get((name, base, seed)))
                for (data, of, seed), value in distance.items()
                if (data, of) == (name, change)
            ]
            logs = [log(value / other) for value, other in pairs if other]
            if len(logs) < 2:
                lines[-1].append("".join(f"{exp(each):.2f}" for each in logs))
                continue
            half = t.ppf(0.975, len(logs) - 1) * stdev(logs) / len(logs) ** 0.5
            lines[-1].append("{:.2f} ({:.2f} to {:.2f})".format(*(exp(mean(logs) + shift) for shift in (0, -half, half))))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measure what is missing in the file of results, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("name", nargs="?", help="name of the data in the table")
    for each in ("train", "test", "classifier"):
        parser.add_argument(each, nargs="?", type=Path)
    parser.add_argument("--change", action="append", default=[], metavar="NAME: OPTIONS")
    parser.add_argument("--seconds", type=float, default=100.0, help="CPU time of each training (default: 100)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="images to draw (default: 1000)")
    parser.add_argument("--bound-images", type=int, default=449, help="test images for bits/dim (default: 449)")
    parser.add_argument("--classes", action="store_true", help="the classifier knows the classes of the data: measure accuracy")
    parser.add_argument(
        "--against", metavar="NAME", help="change for the ratios of distances, which are printed instead of the table"
    )
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    steps = {(row["data"], row["change"]): row["steps"] for row in rows}
    if given.change and any(row.get("sampler") != SAMPLER for row in rows):
        sys.exit(
            f"changes.py: error: {given.results}: has distances measured with another sampler than {SAMPLER}; choose another file"
        )
    for seed in range(given.seeds if given.change else 0):
        for text in given.change:
            head, _, options = text.partition(":")
            name, _, like = head.strip().partition("=")
            if any((row["data"], row["change"], row["seed"]) == (given.name, name, seed) for row in rows):
                continue
            key = (given.name, name)
            words = shlex.split(options)
            if key not in steps:
                steps[key] = steps[given.name, like] if like else steps_within(given.seconds, given.train, words)
            row = {
                "data": given.name,
                "change": name,
                "options": options.strip(),
                "seed": seed,
                "steps": steps[key],
                "sampler": SAMPLER,
            }
            rows.append({**row, **measure(given, steps[key], seed, words)})
            with given.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(ratios(rows, given.against) if given.against else table(rows))


if __name__ == "__main__":
    main()

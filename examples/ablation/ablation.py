"""The paper's table in miniature, on 1797 digits: every prediction under every weighting and schedule, by two samplers.

python ablation.py FOLDER             train, draw, score and tabulate; after an interruption it skips finished parts
python ablation.py results.jsonl      only tabulate

Prints Markdown, writes FOLDER/results.jsonl and draws ablation.png beside it. Every cell uses elbo's own commands:
train, bound, sample | eval.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DIGITS = Path(__file__).parent.parent / "digits"
PREDICTIONS = ("eps", "v", "edm")
WEIGHTINGS = ("elbo", "own", "sigmoid:bias=2", "edm", "edm-monotonic")
SCHEDULES = ("cosine", "edm", "adaptive")
SAMPLERS = {"ddpm": 64, "heun": 32}
"""Steps of each, so that both ask the network about as often: heun twice a step but for the last."""
SAMPLES = 900
STYLES = {"cosine": ("C0", "o"), "edm": ("C1", "s"), "adaptive": ("C2", "^")}
"""Schedule → colour and marker. examples/sweep/tabulate.py uses the same."""


class Cell(NamedTuple):
    """A training. weighting `own` is the schedule's density, the weighting of a plain ε loss under it."""

    prediction: str
    weighting: str
    schedule: str
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its files."""
        return "-".join(map(str, self)).replace(":", "-").replace("=", "-")


def cells(seeds: int) -> list[Cell]:
    """All there are, a seed at a time. An adaptive schedule follows its weighting and has none of its own."""
    combinations = itertools.product(range(seeds), PREDICTIONS, WEIGHTINGS, SCHEDULES)
    return [Cell(p, w, s, seed) for seed, p, w, s in combinations if (w, s) != ("own", "adaptive")]


def elbo(*words: Any, feed: bytes | None = None) -> bytes:
    """What a command of elbo's says on stdout. Raises CalledProcessError."""
    line = [sys.executable, "-m", "elbocli", *map(str, words)]
    return subprocess.run(line, input=feed, check=True, capture_output=True).stdout


def prepare(folder: Path) -> None:
    """Digits as datasets, and a classifier whose features are compared."""
    if not (folder / "classifier.pt2").exists():
        subprocess.run([sys.executable, DIGITS / "make_digits.py", folder / "digits"], check=True, stdout=sys.stderr)
        for part in ("train", "test"):
            data = folder / f"{part}.h5"
            elbo("prep", "-q", folder / "digits" / part, data, "--size", 8, "--channels", 1, "--overwrite")
        files = [folder / name for name in ("train.h5", "test.h5", "classifier.pt2")]
        subprocess.run([sys.executable, DIGITS / "make_classifier.py", *files], check=True, stdout=sys.stderr)


@contextmanager
def recorded(result: dict[str, Any], out: Path) -> Iterator[float]:
    """Write the result of the commands in the block to `out`, with its seconds; a command that fails is a result, too."""
    begin = time.monotonic()
    try:
        yield begin
    except subprocess.CalledProcessError as error:
        if error.returncode in (130, 143, -2, -15):
            raise
        result["failed"] = error.stderr.decode().strip().splitlines()[-1]
    result["seconds"] = round(time.monotonic() - begin, 1)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(out)


def measure(folder: Path, cell: Cell, steps: int) -> None:
    """Train a cell and score it, if that isn't done: results/NAME.json. What fails is a result too."""
    out = folder / "results" / f"{cell.name}.json"
    if out.exists():
        return
    run = folder / "runs" / cell.name
    weighting = f"eps-mse@{cell.schedule}" if cell.weighting == "own" else cell.weighting
    options = ("--prediction", cell.prediction, "--weighting", weighting, "--schedule", cell.schedule)
    result: dict[str, Any] = dict(cell._asdict(), steps=steps, machine=machine())
    with recorded(result, out):
        elbo(
            "train",
            "-q",
            folder / "train.h5",
            "-o",
            run,
            "--preset",
            "digits",
            "--optimizer",
            "adamw",
            "--lr",
            2e-3,
            "--lr-decay",
            "constant",
            "--steps",
            steps,
            "--seed",
            cell.seed,
            "--preview-every",
            0,
            "--save-every",
            steps,
            "--keep-last",
            1,
            *options,
        )
        result["bpd"] = json.loads(elbo("bound", "-q", run, folder / "test.h5"))["bpd"]
        for sampler, count in SAMPLERS.items():
            images = elbo(
                "sample",
                "-q",
                run,
                "-n",
                SAMPLES,
                "--sampler",
                sampler,
                "--steps",
                count,
                "--batch-size",
                450,
                "--seed",
                cell.seed,
            )
            scores = json.loads(
                elbo(
                    "eval",
                    "-q",
                    "-",
                    "--ref",
                    folder / "train.h5",
                    "--extractor",
                    folder / "classifier.pt2",
                    "--metrics",
                    "fid,accuracy",
                    "--classes",
                    "balanced",
                    feed=images,
                )
            )
            distance, accuracy = (
                scores["scores"][f"{name}[classifier.pt2]"]["value"] for name in ("frechet_distance", "accuracy")
            )
            result[sampler] = {"frechet": distance, "accuracy": accuracy}


def gathered(path: Path) -> list[dict[str, Any]]:
    """All results of a folder, or of the file that was made of one, in order."""
    texts = [each.read_text() for each in (path / "results").glob("*.json")] if path.is_dir() else path.read_text().splitlines()
    found = [json.loads(text) for text in texts]
    order = [(PREDICTIONS, "prediction"), (WEIGHTINGS, "weighting"), (SCHEDULES, "schedule")]
    return sorted(found, key=lambda row: [*(names.index(row[key]) for names, key in order), row["seed"]])


def columns(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a result, by title; none if it failed."""
    if "failed" in row:
        return {}
    return {**{f"{s} distance": row[s]["frechet"] for s in SAMPLERS}, "bits/dim": row["bpd"]}


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, float]]]:
    """The numbers of each seed, by what was trained."""
    groups: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for row in rows:
        groups.setdefault((row["prediction"], row["weighting"], row["schedule"]), []).append(columns(row))
    return groups


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with a row for each combination. The table has the first sampler alone."""
    titles = [f"{next(iter(SAMPLERS))} distance", "bits/dim"]
    lines = [["prediction", "weighting", "schedule", *titles], ["---"] * (3 + len(titles))]
    for key, seeds in grouped(rows).items():
        whole = [seed for seed in seeds if seed]
        numbers = [spread([seed[t] for seed in whole], 3 if t == "bits/dim" else 2) if whole else "failed" for t in titles]
        note = f" ({len(seeds) - len(whole)} of {len(seeds)} failed)" if len(whole) < len(seeds) else ""
        lines.append([*key[:2], key[2] + note, *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marginals(rows: list[dict[str, Any]]) -> str:
    """Markdown: what each choice makes of the distance, against the first of its kind, all else equal; ± 2 standard errors."""
    kinds = {"prediction": PREDICTIONS, "weighting": WEIGHTINGS, "schedule": SCHEDULES, "sampler": tuple(SAMPLERS)}
    found: dict[tuple[str, ...], float] = {}
    for row in rows:
        for sampler in SAMPLERS if "failed" not in row else ():
            training = (row["prediction"], row["weighting"], row["schedule"])
            found[*training, sampler, str(row["seed"])] = np.log(row[sampler]["frechet"])
    lines = [["choice", "against", "distance times", "pairs of trainings"], ["---"] * 4]
    for place, (kind, names) in enumerate(kinds.items()):
        for name in names[1:]:
            pairs = [(key, (*key[:place], names[0], *key[place + 1 :])) for key in found if key[place] == name]
            of_training: dict[tuple[str, ...], list[float]] = {}  # two samplers of one network are no two witnesses
            for key, other in pairs:
                if other in found:
                    of_training.setdefault((*key[:3], key[4]), []).append(found[key] - found[other])
            ratios = [float(np.mean(each)) for each in of_training.values()]
            if len(ratios) > 1:
                error = np.std(ratios, ddof=1) / len(ratios) ** 0.5
                low, middle, high = np.exp(np.mean(ratios) + error * np.array([-2, 0, 2]))
                lines.append([f"{kind} {name}", names[0], f"{middle:.2f} ({low:.2f} to {high:.2f})", str(len(ratios))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw each number over weightings: a column per prediction, a marker per schedule; bars are standard deviations over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    labels = {f"{s} distance": f"Fréchet distance, {s}\n(log scale, lower is better)" for s in SAMPLERS}
    labels["bits/dim"] = "bound on test images, bits/dim\n(lower is better)"
    figure, axes = pyplot.subplots(
        len(labels), len(PREDICTIONS), figsize=(9, 8.5), sharex=True, sharey="row", layout="constrained", squeeze=False
    )
    groups = grouped(rows)
    for (i, title), (j, prediction) in itertools.product(enumerate(labels), enumerate(PREDICTIONS)):
        axis = axes[i][j]
        for shift, schedule in zip((-0.2, 0.0, 0.2), SCHEDULES):
            color, marker = STYLES[schedule]
            for place, weighting in enumerate(WEIGHTINGS):
                values = [seed[title] for seed in groups.get((prediction, weighting, schedule), []) if seed]
                if values:
                    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
                    axis.errorbar(
                        place + shift,
                        np.mean(values),
                        deviation,
                        fmt=marker,
                        capsize=3,
                        color=color,
                        label=schedule if place == 0 else None,
                    )
        axis.set_xticks(range(len(WEIGHTINGS)), WEIGHTINGS, rotation=40, ha="right", rotation_mode="anchor")
        axis.grid(axis="y", alpha=0.3)
        if title != "bits/dim":
            axis.set_yscale("log")
            axis.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter="")
        if i == 0:
            axis.set_title(f"{prediction} prediction")
        if j == 0:
            axis.set_ylabel(labels[title])
    figure.supxlabel("weighting", fontsize="medium")
    figure.legend(*axes[0][0].get_legend_handles_labels(), title="schedule", loc="outside upper center", ncols=len(SCHEDULES))
    figure.savefig(path, dpi=100, metadata={"Software": None})


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: what it took, and both tables."""
    machines, steps = (", ".join(sorted({str(row[key]) for row in rows})) for key in ("machine", "steps"))
    hours = sum(row["seconds"] for row in rows) / 3600
    return (
        f"{len(rows)} trainings of {steps} steps, {hours:.1f} hours of one core in all, on {machines}.\n\n"
        f"{table(rows)}\n\n{marginals(rows)}"
    )


def machine() -> str:
    """The processor's name, as the system tells it."""
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if cpu.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def work(folder: Path, todo: list[Cell], steps: int, jobs: int) -> None:
    """Measure all of them, `jobs` at a time."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    prepare(folder)
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    pool = ThreadPoolExecutor(jobs)
    futures = [pool.submit(measure, folder, cell, steps) for cell in todo]
    try:
        for done, future in enumerate(futures, 1):
            future.result()
            print(f"ablation: {done}/{len(todo)} {todo[done - 1].name}", file=sys.stderr)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def main() -> None:
    """Train and score all combinations, then write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder to work in, or results.jsonl to tabulate")
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time (default: one a core)")
    args = parser.parse_args()
    if args.path.is_file():
        rows = gathered(args.path)
        picture(rows, args.path.with_name("ablation.png"))
    else:
        work(args.path, cells(args.seeds), args.steps, args.jobs)
        rows = gathered(args.path)
        (args.path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        picture(rows, args.path / "ablation.png")
    print(summary(rows))


if __name__ == "__main__":
    main()

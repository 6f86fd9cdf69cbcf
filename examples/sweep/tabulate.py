"""Tabulate the sweep: python tabulate.py FOLDER, or the file results.jsonl that it writes there. Prints Markdown.

A difference is taken between two trainings that differ in one choice and share the seed, hence the first weights, the images and
all noise. It is averaged over everything else within a seed; its 95 % interval is Student's over the seeds.
Draws sweep.png beside the results, and samples.png from the samples of the first seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from PIL import Image, ImageDraw
from scipy import stats

PAPER = 2.0
"""The bias that the others are compared with, where it is among them."""
STYLES = {"cosine": ("C0", "o"), "edm": ("C1", "s"), "adaptive": ("C2", "^"), "laplace": ("C4", "D")}
"""Schedule → colour and marker. examples/ablation/ablation.py uses the same."""
FILLINGS = {-1: "bottom", 0: "full", 1: "none"}
"""Filled part of the marker, by the sign of the schedule's shift."""


class Setting(NamedTuple):
    """A training but for its seed."""

    bias: float
    shift: float
    schedule: str

    @property
    def place(self) -> str:
        """Schedule and shift, in words."""
        return self.schedule + (f", shift {self.shift:g}" if self.shift else "")


class Scores(NamedTuple):
    """Fréchet distance in the classifier's features, accuracy of the samples in per cent, bits per dimension of test images."""

    distance: float
    accuracy: float
    bpd: float


Results = dict[Setting, dict[int, Scores]]


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a folder of results, or of a file of them, in order."""
    if path.is_dir():
        rows = [json.loads(each.read_text()) for each in (path / "results").glob("*.json")]
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: (row["schedule"], row["shift"], row["bias"], row["seed"]))


def grouped(rows: list[dict[str, Any]]) -> Results:
    """Scores by setting and seed."""
    found: Results = {}
    for row in rows:
        setting = Setting(row["bias"], row["shift"], row["schedule"])
        found.setdefault(setting, {})[row["seed"]] = Scores(row["distance"], 100 * row["accuracy"], row["bpd"])
    return found


def settings_table(results: Results) -> str:
    """Markdown: mean ± standard deviation over seeds of each setting."""
    lines = [["bias", "schedule", "distance", "accuracy, %", "bits/dim"], ["---"] * 5]
    for setting, seeds in results.items():
        columns = [spread(list(values), digits) for values, digits in zip(zip(*seeds.values()), (2, 1, 3))]
        lines.append([f"{setting.bias:g}", setting.place, *columns])
    return markdown(lines)


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation."""
    return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


class Choice(NamedTuple):
    """A value of one of a setting's fields, against another value of it."""

    field: str
    value: float | str
    base: float | str

    def partner(self, setting: Setting) -> Setting | None:
        """The setting that differs in this choice alone; None for one without it. Schedules are compared where neither is shifted."""
        if getattr(setting, self.field) != self.value or (self.field == "schedule" and setting.shift):
            return None
        return setting._replace(**{self.field: self.base})  # type: ignore[arg-type]


def choices(results: Results) -> list[Choice]:
    """Every bias against the paper's, every shift against none, every schedule against the cosine."""
    biases = sorted({setting.bias for setting in results})
    base = PAPER if PAPER in biases else biases[-1]
    found = [Choice("bias", bias, base) for bias in biases if bias != base]
    found += [Choice("shift", shift, 0.0) for shift in sorted({setting.shift for setting in results} - {0.0})]
    return found + [Choice("schedule", name, "cosine") for name in sorted({s.schedule for s in results} - {"cosine"})]


def differences(results: Results, choice: Choice) -> np.ndarray:
    """[seeds, 3]: log ratio of distances, points of accuracy, bits/dim; the mean within each seed over pairs of settings."""
    by_seed: dict[int, list[list[float]]] = {}
    for setting, seeds in results.items():
        other = choice.partner(setting)
        for seed, one in seeds.items():
            if other is not None and seed in results.get(other, {}):
                two = results[other][seed]
                ratio = float(np.log(one.distance / two.distance))
                by_seed.setdefault(seed, []).append([ratio, one.accuracy - two.accuracy, one.bpd - two.bpd])
    return np.array([np.mean(pairs, axis=0) for pairs in by_seed.values()]).reshape(-1, 3)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of numbers, one a seed, and the ends of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(np.mean(values) - half), float(np.mean(values) + half)


def said(mean: float, low: float, high: float, digits: int, nothing: float) -> str:
    """A difference with its interval; bold where the interval leaves out what no difference would be."""
    text = f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    return f"**{text}**" if not low <= nothing <= high else text


def differences_table(results: Results) -> str:
    """Markdown: what each choice makes of the scores, all else and the seed being equal."""
    lines = [["choice", "against", "distance times", "accuracy, points", "bits/dim", "seeds"], ["---"] * 6]
    for choice in choices(results):
        found = differences(results, choice)
        if len(found) > 1:
            mean, low, high = (math.exp(value) for value in interval(found[:, 0]))
            words = [
                said(mean, low, high, 2, 1.0),
                said(*interval(found[:, 1]), 1, 0.0),
                said(*interval(found[:, 2]), 3, 0.0),
            ]
            value, base = (f"{each:g}" if isinstance(each, float) else each for each in choice[1:])
            lines.append([f"{choice.field} {value}", base, *words, str(len(found))])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """A table of cells."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(results: Results, path: Path) -> None:
    """Draw scores over biases: a colour per schedule, a filling per shift; bars are standard deviations over seeds.

    A line joins the means of a schedule with three biases or more.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = (
        "Fréchet distance\n(lower is better)",
        "accuracy of samples, %\n(higher is better)",
        "bound on test images, bits/dim\n(lower is better)",
    )
    figure, axes = pyplot.subplots(1, len(labels), figsize=(9, 3.8), layout="constrained")
    places = dict.fromkeys((setting.schedule, setting.shift) for setting in results)
    for number, place in enumerate(places):
        mine = sorted(setting for setting in results if (setting.schedule, setting.shift) == place)
        at = [setting.bias + 0.08 * (number - (len(places) - 1) / 2) for setting in mine]
        color, marker = STYLES[place[0].partition(":")[0]]
        look = {"color": color, "marker": marker, "fillstyle": FILLINGS[int(np.sign(place[1]))], "capsize": 3}
        for axis, column in zip(axes, zip(*(zip(*results[setting].values()) for setting in mine))):
            means = [np.mean(scores) for scores in column]
            deviations = [np.std(scores, ddof=1) if len(scores) > 1 else 0.0 for scores in column]
            axis.errorbar(at, means, deviations, ls="-" if len(mine) > 2 else "", label=mine[0].place, **look)
    biases = sorted({setting.bias for setting in results})
    for axis, label in zip(axes, labels):
        axis.set(ylabel=label, xlabel="bias of the sigmoid weighting", xticks=biases, xlim=(biases[0] - 0.7, biases[-1] + 0.7))
        axis.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), title="schedule", loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def sheet(folder: Path, rows: list[dict[str, Any]], path: Path, per_row: int = 20, zoom: int = 2) -> None:
    """A row of samples of each setting, by the first seed: image i of every row is drawn from the same noise and class."""
    seed = min(row["seed"] for row in rows)
    lines = [row for row in rows if row["seed"] == seed]
    strips = []
    for row in lines:
        schedule = row["schedule"].replace(":", "+").replace(",", "^")
        name = f"{row['bias']:g}_{row['shift']:g}_{schedule}_{seed}"
        with h5py.File(folder / "results" / f"{name}.h5") as file:
            images = file["images"]
            chosen = np.linspace(0, len(images) - 1, per_row).astype(int)
            gutter = ((0, 0), (0, 1), (0, 0))
            strips.append(np.concatenate([np.pad(images[i], gutter, constant_values=255) for i in chosen], 1)[..., 0])
    height, width = strips[0].shape
    page = Image.new("L", (width * zoom, len(strips) * (height * zoom + 14)), 255)
    pen = ImageDraw.Draw(page)
    for number, (row, strip) in enumerate(zip(lines, strips)):
        top = number * (height * zoom + 14)
        words = f"bias {row['bias']:g}, {Setting(row['bias'], row['shift'], row['schedule']).place}"
        pen.text((2, top), f"{words}: distance {row['distance']:.1f}, {row['bpd']:.3f} bits/dim", fill=0)
        page.paste(Image.fromarray(strip).resize((width * zoom, height * zoom), Image.Resampling.NEAREST), (0, top + 14))
    page.save(path)


def machine() -> str:
    """Cores and the kind of processor."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of an {names[0] if names else platform.machine()}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: how much was trained, in what time, and both tables."""
    results = grouped(rows)
    steps, machines = (", ".join(sorted({str(row[key]) for row in rows})) for key in ("steps", "machine"))
    seconds = np.median([row["seconds"] for row in rows])  # a machine may have slept through one
    return (
        f"{len(rows)} trainings of {steps} steps, {len(results)} settings; {seconds:.0f} s each (the median) with "
        f"samples and scores, on {machines}.\n\n{settings_table(results)}\n\n{differences_table(results)}"
    )


def main() -> None:
    """Read, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder of the sweep, or its results.jsonl")
    path = parser.parse_args().path
    rows = read(path)
    if path.is_dir():
        rows = [{**row, "machine": machine()} for row in rows]
        (path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sheet(path, rows, path / "samples.png")
    picture(grouped(rows), (path if path.is_dir() else path.parent) / "sweep.png")
    print(summary(rows))


if __name__ == "__main__":
    main()

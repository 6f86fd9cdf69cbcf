"""How often `elbo compare` calls trainings apart: of one recipe, and of two that differ.

    python tools/bench/trainings.py WORK --seeds 48 --others 12 --steps 120 -o out.json

Trains small networks on digits: --seeds of one recipe, and --others of another (--change), all with seeds of their own. Draws and
scores samples of each. Then compares 40 random pairs of disjoint groups of three trainings of the first recipe, and 20 pairs of
three of each. Pairs share trainings, so their verdicts are not independent.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from elbocli import main as elbo
from elbocli.scoring.comparison import ScoredFile, compare_results, read_scored

ROOT = Path(__file__).parents[2]
SMALL = ["--preset", "digits", "--lr-decay", "constant", "--batch-size", "32", "--preview-every", "0", "--quiet"]
OF_EACH = 3


def command(*words: object) -> bytes:
    """Run a command line in this process; return its stdout. Raises SystemExit if it fails."""
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())) as out:
        if code := elbo.run(list(map(str, words))):
            sys.exit(f"{words}: exit {code}")
    out.flush()
    return out.buffer.getvalue()  # type: ignore[attr-defined, no-any-return]


def scored(work: Path, name: str, data: Path, options: list[str], seed: int, steps: int) -> ScoredFile:
    """Train, draw, score; results that are there are read."""
    run = work / f"{name}{seed}"
    result = work / f"{name}{seed}.json"
    if not result.exists():
        command("train", data, "-o", run, *SMALL, "--steps", steps, "--seed", seed, *options)
        command(
            "sample",
            run,
            "-n",
            500,
            "--sampler",
            "dpmpp-2m",
            "--steps",
            10,
            "--seed",
            seed,
            "-q",
            "-o",
            f"{run}.h5",
            "--overwrite",
        )
        result.write_bytes(command("eval", f"{run}.h5", "--ref", data, "--extractor", "elbo-tiny", "-q"))
    return read_scored(result.read_bytes(), str(result))


def distance(result: ScoredFile) -> Any:
    """Return the only score, with its standard error."""
    (score,) = result.sets[0].scores.values()
    return score


def verdicts(first: list[ScoredFile], other: list[ScoredFile], pairs: int, random: np.random.Generator) -> Counter[str]:
    """Count verdicts on pairs of groups; the two lists may be one."""
    counts = Counter[str]()
    for _ in range(pairs):
        order = random.permutation(len(first))
        chosen = [first[index] for index in order[:OF_EACH]]
        against = [first[index] for index in order[OF_EACH : 2 * OF_EACH]]
        if other is not first:
            against = [other[index] for index in random.permutation(len(other))[:OF_EACH]]
        else:  # one recipe: name the second group's otherwise, so that it is a side of its own
            against = [_renamed(result) for result in against]
        (_, compared), _ = compare_results(chosen + against)
        counts["apart" if compared.scores[0].apart else "not apart"] += 1
    return counts


def _renamed(result: ScoredFile) -> ScoredFile:
    sets: list[Any] = [each._replace(made={**each.made, "settings_sha256": "other"}) for each in result.sets]
    return result._replace(sets=sets)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--others", type=int, default=12)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--change", default="--lr 1e-3", help="options of the other recipe")
    parser.add_argument("--pairs", type=int, nargs=2, default=[40, 20])
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args(words)
    given.work.mkdir(exist_ok=True)
    data = given.work / "digits.h5"
    if not data.exists():
        script = ROOT / "examples" / "digits" / "make_digits.py"
        subprocess.run([sys.executable, script, given.work / "digits"], stdout=subprocess.DEVNULL, check=True)
        command("prep", given.work / "digits" / "train", data, "-q")
    random = np.random.default_rng(0)
    first = [scored(given.work, "a", data, [], seed, given.steps) for seed in range(given.seeds)]
    other = [scored(given.work, "b", data, given.change.split(), 1000 + seed, given.steps) for seed in range(given.others)]
    values = {name: [distance(one).value for one in results] for name, results in (("a", first), ("b", other))}
    found = {
        "same recipe": verdicts(first, first, given.pairs[0], random),
        given.change: verdicts(first, other, given.pairs[1], random),
        "mean": {name: float(np.mean(each)) for name, each in values.items()},
        "sd over trainings": {name: float(np.std(each, ddof=1)) for name, each in values.items()},
        "sd of sampling": float(np.mean([distance(one).se for one in first])),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

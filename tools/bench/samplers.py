"""Score every sampler at several numbers of evaluations, with the same noises and classes, for the table of docs/measurements.md.

    python tools/bench/samplers.py RUN train.h5 classifier.pt2 -n 500 >> samplers.jsonl
    python tools/bench/samplers.py --table samplers.jsonl

Each line of the result has the Fréchet distance from the training images in the classifier's features, its standard error over sets
of samples, and the seconds of `elbo sample`. A run's line with the sampler `training` has the distance of as many training images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SAMPLERS = ("ddpm", "ddim", "dpmpp-2m", "dpmpp-2m-sde", "heun")
EVALUATIONS = (10, 16, 25, 32, 128)


def steps_of(sampler: str, evaluations: int) -> int:
    """Return the largest number of steps that takes at most `evaluations` network evaluations."""
    return (evaluations + 1) // 2 if sampler == "heun" else evaluations


def elbo(*words: str) -> str:
    """Return the standard output of a command of elbo."""
    done = subprocess.run([sys.executable, "-m", "elbocli", *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def rows(run: Path, data: Path, extractor: Path, n: int, samplers: list[str], evaluations: list[int]) -> Iterator[dict]:
    """Yield the figures of each sampler and number of evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        features = Path(folder) / "features.safetensors"
        score = ("--extractor", str(extractor), "--metrics", "fid")
        elbo("eval", "-q", str(data), *score, "--save-features", str(features))
        for sampler in samplers:
            for number in evaluations:
                words = ("--sampler", sampler, "--steps", str(steps_of(sampler, number)), "-n", str(n))
                begin = time.perf_counter()
                elbo("sample", "-q", str(run), *words, "--overwrite", "-o", str(images))
                seconds = time.perf_counter() - begin
                result = json.loads(elbo("eval", "-q", str(images), "--ref", str(features), *score))
                score = result["scores"][f"frechet_distance[{result['extractor']}]"]
                row = {"run": run.name, "sampler": sampler, "evaluations": number, "n": n}
                yield row | {"distance": score["value"], "se": score["se"], "seconds": round(seconds, 1)}


def table(lines: list[dict]) -> str:
    """Return a Markdown table: a row for each run and sampler, a column for each number of evaluations."""
    columns = sorted({line["evaluations"] for line in lines})
    cells = {(line["run"], line["sampler"], line["evaluations"]): f"{line['distance']:.3g} ± {line['se']:.2g}" for line in lines}
    text = [f"| run | sampler | {' | '.join(map(str, columns))} |", "|---" * (2 + len(columns)) + "|"]
    for run, sampler in dict.fromkeys((line["run"], line["sampler"]) for line in lines):
        text.append(f"| {run} | `{sampler}` | {' | '.join(cells.get((run, sampler, column), '') for column in columns)} |")
    return "\n".join(text)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run, or with --table a file of results")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("extractor", type=Path, nargs="?")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--evaluations", nargs="+", type=int, default=EVALUATIONS)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args(words)
    if given.table:
        print(table([json.loads(line) for line in given.run.read_text().splitlines()]))
        return
    for row in rows(given.run, given.data, given.extractor, given.n, given.samplers, given.evaluations):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""SIGKILL at random moments of every command that writes: the same command again makes the same bytes, and nothing is left over.

The slow test kills 1,000 times, or TIMES, and prints a table: pytest -m slow -s tests/cli/test_kills.py.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elbocli.files.atomic import ASIDE

FEW = "-n 20 --steps 10 --batch 5"
SCORE = "--extractor elbo-tiny --metrics fid,kid --kid-subset-size 50"
HOOK = "test -f $ELBO_CHECKPOINT/meta.json || touch $ELBO_RUN.lost"
AVERAGES = "--ema .9 --ema power:std=.05 --ema power:std=.1 --ema halflife:images=100"
COMMANDS = {
    "prep": "prep {images} x.h5 --size 8 --channels 1",
    "prep webp": "prep {images} x.h5 --size 16 --store webp --shard 1/2",
    "merge": "merge x.h5 {data}",
    "train": f"train {{data}} -o x --preset {{preset}} --steps 12 --save-every 3 --snapshot-every 4 --keep 1 {AVERAGES} "
    f"--val-split 20 --val-every 96 --on-checkpoint '{HOOK}'",
    "import": "import {weights} x --plugin {plugin}",
    "adapt": "adapt {run} -o x.yaml --plot x.svg",
    "sample npy": f"sample {{run}} {FEW} -o x.npy",
    "sample npz": f"sample {{run}} {FEW} -o x.npz",
    "sample h5": f"sample {{run}} {FEW} -o x.h5",
    "sample grid": f"sample {{run}} {FEW} -o x.png",
    "sample pictures": f"sample {{run}} {FEW} -o x",
    "eval": f"eval {{data}} --ref {{data}} {SCORE} --card x.md --save-stats x.npz --save-features x.safetensors",
    "bound": "bound {run} -n 20 --draws 8 --curve x.tsv --plot x.png --log x.jsonl",
    "bound images": "bound {run} -n 20 --draws 8 --estimator information --per-image x.tsv",
    "ema": "ema {run} --std .1 -o x.safetensors",
    "grid": "grid {run} --sampler heun --steps 8 -n 4 -o x.yaml",
    "optimum": "optimum {data} -n 50 -o x.json --plot x.svg",
    "report": "report {run} {run} -o x.html",
    "weights plot": "weights plot sigmoid edm -o x.pdf",
    "info grid": "info {data} --grid x.png",
    "presets write": "presets write digits x.yaml",
}
CHANGING = {"metrics.jsonl", "status.json", "meta.json", ".lock", "events"}
"""Files of a run that hold times or speeds, or say how long one that does is."""
QUICK = ("prep webp", "merge", "train", "import", "sample npy", "eval")
"""Those that the suite kills, once: tests/cli/test_litter.py kills the others."""
Elbo = Callable[..., Any]


@pytest.fixture(scope="module")
def places(
    elbo: Elbo,
    digits: Path,
    digits_folder: Path,
    preset: Path,
    foreign: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The names that command lines have for files; `run` has snapshots."""
    run = tmp_path_factory.mktemp("kills") / "run"
    assert elbo("train", digits, "-o", run, "--preset", preset, "--snapshot-every", 10).returncode == 0
    return {"run": run, "data": digits, "images": digits_folder, "preset": preset, **foreign}


def start(name: str, elbo: Elbo, places: dict[str, Path], folder: Path, *more: str, **conditions: Any) -> Any:
    """Run a command of that name in a folder. more: options."""
    return elbo(*shlex.split(COMMANDS[name].format(**places)), *more, cwd=folder, **conditions)


def made(folder: Path) -> dict[str, bytes]:
    """Files that a command has made, by name; a card has the command, which may have been given once more with --overwrite."""
    files = [path for each in folder.glob("x*") for path in (each.rglob("*") if each.is_dir() else [each])]
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(b" --overwrite", b"")
        for path in files
        if path.is_file() and path.name not in CHANGING
    }


def undisturbed(name: str, elbo: Elbo, places: dict[str, Path], folder: Path) -> tuple[dict[str, bytes], float]:
    """Files that it makes, and the seconds that it takes."""
    folder.mkdir()
    begun = time.monotonic()
    done = start(name, elbo, places, folder)
    assert done.returncode == 0, done
    took, found = time.monotonic() - begun, made(folder)
    assert found and not leftovers(folder)
    return found, took


def leftovers(folder: Path) -> list[str]:
    """Names of what is half written."""
    half = (path for path in folder.rglob("*") if ASIDE.fullmatch(path.name) or ".partial" in path.name)
    return [str(path.relative_to(folder)) for path in half]


def killed(
    name: str, elbo: Elbo, places: dict[str, Path], folder: Path, moments: list[float], whole: dict[str, bytes]
) -> int:
    """Kill a command at those moments, then let it end, and check what it made. Returns how many kills met it at work."""
    folder.mkdir()
    met = 0
    for after in moments:
        done = start(name, elbo, places, folder, ended=(signal.SIGKILL, after))
        met += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL) or b"already exists" in done.stderr, done
        assert b"Traceback" not in done.stderr, done
    done = start(name, elbo, places, folder)
    there = done.returncode == 2 and b"already exists" in done.stderr
    if there and any(not (folder / each).exists() for each in whole):  # the first of several was made
        done = start(name, elbo, places, folder, "--overwrite")
        there = False
    assert done.returncode == 0 or there, done
    assert not leftovers(folder), (name, moments, leftovers(folder))
    assert not (folder / "x.lost").exists(), "a command after a checkpoint found none"
    found = made(folder)
    assert sorted(found) == sorted(whole), (name, moments)
    assert [each for each in whole if found[each] != whole[each]] == [], (name, moments)
    shutil.rmtree(folder)
    return met


@pytest.mark.parametrize("name", QUICK)
def test_killed_once(name: str, elbo: Elbo, places: dict[str, Path], tmp_path: Path) -> None:
    whole, took = undisturbed(name, elbo, places, tmp_path / "whole")
    killed(name, elbo, places, tmp_path / "work", [took * random.Random(name).random()], whole)


@pytest.mark.slow
def test_1000_kills(elbo: Elbo, places: dict[str, Path], tmp_path: Path) -> None:
    draw = random.Random(int(os.environ.get("SEED", "0")))
    times, table, kills = int(os.environ.get("TIMES", "1000")), Counter[str](), Counter[str]()
    for name in COMMANDS:
        whole, took = undisturbed(name, elbo, places, tmp_path / "whole")
        shutil.rmtree(tmp_path / "whole")
        while kills[name] < -(-times // len(COMMANDS)):
            moments = [took * draw.uniform(0, 1.1) * draw.choice([0.05, 0.3, 1, 1]) for _ in range(4)]
            table[name] += killed(name, elbo, places, tmp_path / "work", moments, whole)
            kills[name] += len(moments)
        print(f"{name:16} {kills[name]:4} kills, {table[name]:4} at work, {took:.2f} s undisturbed", flush=True)
    assert sum(kills.values()) >= times

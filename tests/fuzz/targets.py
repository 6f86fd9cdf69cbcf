"""Good files of every format, how each is damaged, and the commands that read it."""

from __future__ import annotations

import json
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile_files import TRAIN, good_files
from mutations import Mutation, flip, hdf5, json_line, json_tree, members, npy, sealed, swap, tensors, yaml_tree

CHECKPOINT = "run/checkpoints/step-00000010"
SCORES = "--extractor elbo-tiny --metrics fid"
READERS_OF_RUN = ("info run", "sample run -n 1 --steps 2 -o x.npy", "report run -o x.html", "adapt run -o x.yaml")
READERS_OF_WEIGHTS = (
    f"info {CHECKPOINT}",
    "sample run -n 1 --steps 2 -o x.npy",
    "info --verify run",
    "bound run -n 2 --draws 2",
    "ema run --half-life 100 -o x.safetensors",
    "train good.h5 --preset tiny.yaml --init run -o new --dry-run",
)
MAKING = (
    "prep good.npy data.h5 -q",
    TRAIN,
    "sample run -n 12 --steps 2 -o samples.h5",
    "sample run -n 12 --steps 2 -o samples.npz",
    f"eval samples.h5 --ref good.h5 {SCORES} -q --save-stats stats.npz --save-features features.safetensors",
    "bound run -n 4 --draws 2 -q",
    "bound run -n 4 --draws 2 -q --check",
    "adapt run -o schedule.yaml -q",
    "prep images part0.h5 -q --shard 1/2",
    "prep images part1.h5 -q --shard 2/2",
    "merge merged.h5 part0.h5 part1.h5 -q",
)
KEPT = {4: "run/scores.json", 5: "run/bound.json", 6: "run/theorem.json"}
"""Results of MAKING on standard output, and the files that they become."""


@dataclass(frozen=True)
class Target:
    """A file of the good folder. mutations: those that know its format. lines: command lines that read it."""

    file: str
    mutations: tuple[Mutation, ...]
    lines: tuple[str, ...]


TARGETS = (
    Target(
        "data.h5",
        (hdf5, hdf5, flip),
        (
            "info data.h5",
            "info --verify data.h5",
            "train data.h5 --preset tiny.yaml -o new --dry-run",
            "prep data.h5 x.h5 -q",
            "merge x.h5 data.h5 data.h5 -q",
            f"eval samples.npz --ref data.h5 {SCORES} -q",
            "bound run data.h5 -n 2 --draws 2 -q",
            "info data.h5 --grid x.png",
        ),
    ),
    Target("samples.h5", (hdf5, hdf5, flip), ("info samples.h5", f"eval samples.h5 --ref good.h5 {SCORES} -q", "report run --samples samples.h5 -o x.html", "info --verify samples.h5")),
    Target("merged.h5", (hdf5, flip), ("info merged.h5", "info --verify merged.h5", "prep merged.h5 x.h5 -q")),
    Target("good.npy", (npy, npy, flip), ("info good.npy", "prep good.npy x.h5 -q", f"eval good.npy --ref good.h5 {SCORES} -q")),
    Target("samples.npz", (members, members, flip), ("info samples.npz", "prep samples.npz x.h5 -q", f"eval samples.npz --ref good.h5 {SCORES} -q")),
    Target("stats.npz", (members, members, flip), ("info stats.npz", "eval samples.npz --ref stats.npz --extractor elbo-tiny -q", "compare features.safetensors features.safetensors --ref stats.npz")),
    Target("features.safetensors", (tensors, tensors, flip), ("info features.safetensors", "eval features.safetensors --ref stats.npz -q", "compare features.safetensors features.safetensors --ref stats.npz")),
    Target("schedule.yaml", (yaml_tree, yaml_tree, flip), ("info schedule.yaml", "weights check u-mse@schedule.yaml", "train good.h5 --preset tiny.yaml --schedule schedule.yaml -o new --dry-run", "sample run -n 1 --steps 2 --schedule schedule.yaml -o x.npy")),
    Target("tiny.yaml", (yaml_tree, yaml_tree, flip), ("train good.h5 --preset tiny.yaml -o new --dry-run", "presets show tiny.yaml")),
    Target("scheduler_config.json", (json_tree, json_tree, flip), ("weights check scheduler_config.json",)),
    Target("run/config.yaml", (yaml_tree, yaml_tree, flip, swap), (*READERS_OF_RUN, "train -o run --dry-run", "train good.h5 --config run/config.yaml -o new --dry-run")),
    Target("run/status.json", (json_tree, json_tree, flip, swap), ("info run", "report run -o x.html")),
    Target("run/metrics.jsonl", (json_line, json_line, flip, swap), ("report run -o x.html", "info run")),
    Target("run/losslog.jsonl", (json_line, json_line, flip, swap), ("adapt run -o x.yaml", "report run -o x.html", "info run/losslog.jsonl", "weights plot run -o x.svg")),
    Target("run/scores.json", (json_tree, json_tree, flip, swap), ("report run -o x.html", "info run/scores.json", "report run --json", "compare run/scores.json run/scores.json", "compare run/scores.json run --table")),
    Target("run/bound.json", (json_tree, json_tree, flip, swap), ("report run -o x.html", "info run/bound.json", "report run --json")),
    Target("run/theorem.json", (json_tree, json_tree, flip, swap), ("report run -o x.html", "info run/theorem.json", "report run --json")),
    Target(f"{CHECKPOINT}/meta.json", (json_tree, json_tree, flip, swap), (*READERS_OF_WEIGHTS, "train -o run --steps 11 -q")),
    Target(f"{CHECKPOINT}/model.safetensors", (tensors, sealed(tensors), sealed(flip), sealed(swap)), READERS_OF_WEIGHTS),
    Target(f"{CHECKPOINT}/state.pt", (flip, sealed(members), sealed(flip), sealed(swap)), ("info --verify run", "train -o run --steps 11 -q")),
    Target("weights.pt", (members, members, flip), ("info weights.pt", "import weights.pt new --format dit", "import weights.pt new")),
    Target("images.tar", (flip,), ("prep images.tar x.h5 -q", "prep images.tar x.h5 -q --on-error skip")),
    Target("images.zip", (members, flip), ("prep images.zip x.h5 -q", "prep images.zip x.h5 -q --on-error skip")),
    Target("images/0.png", (flip,), ("prep images x.h5 -q", f"eval images --ref good.h5 {SCORES} -q")),
    Target("labels.txt", (flip,), ("prep images x.h5 -q --labels labels.txt",)),
)  # fmt: skip


def good_folder(folder: Path, run: Callable[[str, Path], tuple[int, bytes, bytes]]) -> None:
    """Fill a folder with a good file of every format. run: runs a command line of elbo there: its code and streams."""
    good_files(folder)
    (folder / "scheduler_config.json").write_text(
        json.dumps({"num_train_timesteps": 50, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02})
    )
    (folder / "labels.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(3)))
    images = sorted((folder / "images").iterdir())
    with tarfile.open(folder / "images.tar", "w") as tar, zipfile.ZipFile(folder / "images.zip", "w") as packed:
        for path in images:
            tar.add(path, path.name)
            packed.write(path, path.name)
    torch.save(
        {"pos_embed": torch.zeros(1, 16, 8), "x_embedder.proj.weight": torch.zeros(8, 4, 2, 2)}, folder / "weights.pt"
    )
    for number, line in enumerate(MAKING):
        code, out, err = run(line, folder)
        assert code == 0, f"elbo {line}: {err.decode(errors='replace')}"
        if number in KEPT:
            (folder / KEPT[number]).write_bytes(out)
    assert all((folder / target.file).is_file() for target in TARGETS)

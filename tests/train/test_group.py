"""One run in one process, in two and in four, replicated and sharded: the same losses, one checkpoint format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from elbocli.errors import UsageError
from elbocli.files.checkpoint import checkpoints, latest, read_checkpoint
from elbocli.files.dataset import Dataset
from elbocli.run.settings import resolve
from elbocli.runtime.processes import World
from elbocli.train.state import TrainState, split

GROUP = Path(__file__).parents[1] / "group.py"
STEPS = 12
ALONE = (1, "ddp")
FEW = ((2, "ddp"), (2, "fsdp"))
ALL = (*FEW, (4, "ddp"), (4, "fsdp"))
PRESETS = {
    "unet": "network: {channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.0}",
    "uvit": "network: {family: uvit, patching: dwt-1, channels: 8, levels: [1, 2], blocks: 1, depth: 2, heads: 2, "
    "embedding: 16, dropout: 0.0}",
    "edm2": "network: {family: edm2, channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.0}",
    "dit": "network: {family: dit, width: 16, depth: 2, heads: 2, patch: 2, dropout: 0.0}",
    "diffusers-unet": """network: {family: diffusers-unet, code: "logsnr:factor=25", model: '{"block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}'}""",
}
TRAIN = """
train: {prediction: v, schedule: adaptive, logsnr_min: -10, logsnr_max: 10, steps: 12, batch: 14, lr: 2.0e-3,
        warmup: 5, ema: 0.9, label_dropout: 0.2, flip: true, save_every: 6, preview_every: 12, log_every: 1}
"""


def grouped(tmp_path: Path, jobs: list[dict[str, Any]]) -> tuple[list[list[int]], str]:
    """Exit codes by run and rank, and what was said on stderr."""
    (tmp_path / "jobs.json").write_text(json.dumps([{**job, "out": str(tmp_path / job["out"])} for job in jobs]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(GROUP), str(tmp_path / "jobs.json")]
    result = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def succeeded(tmp_path: Path, jobs: list[dict[str, Any]]) -> None:
    """All of them, in every process."""
    codes, said = grouped(tmp_path, jobs)
    assert not any(any(ranks) for ranks in codes), said


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("family", "ways"), [("unet", FEW), *(pytest.param(name, ALL, marks=pytest.mark.slow) for name in PRESETS)]
)
def test_losses_do_not_depend_on_processes_or_how_they_share(
    family: str, ways: tuple[tuple[int, str], ...], digits_folder: Path, elbo: Any, tmp_path: Path
) -> None:
    """With a batch that neither two parts nor four processes divide evenly, nor the table of eleven classes."""
    copytree(digits_folder, tmp_path / "images")
    copytree(digits_folder / "0", tmp_path / "images" / "10")
    digits = tmp_path / "digits.h5"
    assert elbo("prep", tmp_path / "images", digits, "--size", 8, "--channels", 1).returncode == 0
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESETS[family] + TRAIN)
    jobs = [
        {
            "size": size,
            "data": str(digits),
            "out": f"{size}-{parallel}",
            "options": {
                "preset": str(preset),
                "parallel": parallel,
                "micro_batch": 3 if size == 2 else 0,
                "val_split": 20,
                "val_every": 70,
            },
        }
        for size, parallel in (ALONE, *ways)
    ]
    succeeded(tmp_path, jobs)
    alone = tmp_path / "1-ddp"
    for size, parallel in ways:
        run = tmp_path / f"{size}-{parallel}"
        for name, keys in (
            ("metrics.jsonl", ("loss", "grad_norm", "val_loss", "val_bpd")),
            ("losslog.jsonl", ("sum",)),
        ):
            rows = list(zip(lines(alone, name), lines(run, name), strict=True))
            assert len(rows) > STEPS
            for key in keys:
                expected, found = (np.array([row[k][key] for row in rows if key in row[k]]) for k in (0, 1))
                assert len(expected), key
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12, err_msg=f"{run.name} {key}")
        counts = [[row["count"] for row in lines(path, "losslog.jsonl")[1:]] for path in (alone, run)]
        assert counts[0] == counts[1]
        assert sum(map(sum, counts[0])) == STEPS * 14
        whole, other = (load_file(checkpoints(path)[-1] / "ema-0.9.safetensors") for path in (alone, run))
        assert list(whole) == list(other)
        assert any(len(value) == 11 for value in whole.values())
        for name, value in whole.items():
            if not name.endswith("to_k.bias"):  # which has no gradient but rounding, of which Adam makes whole steps
                torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
        # The previews of the averages are the same pictures, to a level or two.
        assert (run / "previews" / "step-00000012.png").exists()


def test_a_run_begins_from_the_weights_of_another_however_many_processes_share_it(
    trained: Path, digits: Path, tmp_path: Path
) -> None:
    options = {
        "weighting": "edm",
        "network.dropout": 0.0,
        "steps": 3,
        "log_every": 1,
        "save_every": 3,
        "conditional": False,
    }
    ways = (ALONE, *FEW)
    job = {"data": str(digits), "init": str(trained)}
    succeeded(
        tmp_path,
        [
            {**job, "size": size, "out": f"{size}-{parallel}", "options": {**options, "parallel": parallel}}
            for size, parallel in ways
        ],
    )
    losses = [[row["loss"] for row in lines(tmp_path / f"{size}-{way}", "metrics.jsonl")] for size, way in ways]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[1:], [losses[0]] * len(FEW), rtol=1e-5)


def test_a_run_goes_on_with_other_numbers_of_processes_and_the_other_way_of_sharing(
    digits: Path, preset: Path, tmp_path: Path
) -> None:
    plain = {
        "preset": str(preset),
        "network.dropout": 0.0,
        "schedule": "adaptive",
        "log_every": 4,
        "save_every": 4,
        "keep": 99,
    }
    job = {"data": str(digits), "out": "mixed"}
    plan = [(2, "ddp", 3), (1, "ddp", 6), (2, "fsdp", 9), (4, "fsdp", 11), (2, "ddp", None)]
    options = {**plain, "steps": 14}
    mixed = [{**job, "size": n, "options": {**options, "parallel": way}, "told": told} for n, way, told in plan]
    codes, said = grouped(tmp_path, [*mixed, {**job, "size": 1, "out": "alone", "options": options}])
    assert codes == [[138] * 2, [138], [138] * 2, [138] * 4, [0] * 2, [0]], said
    for name, key in (("metrics.jsonl", "loss"), ("losslog.jsonl", "sum")):
        rows = [[row[key] for row in lines(tmp_path / run, name) if key in row] for run in ("mixed", "alone")]
        np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3, atol=1e-5)
    assert len(rows[0]) == 4
    weights = [load_file(checkpoints(tmp_path / run)[-1] / "model.safetensors") for run in ("mixed", "alone")]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-2, atol=1e-3)
    sizes = {int(path.name[5:]): read_checkpoint(path).meta.world_size for path in checkpoints(tmp_path / "mixed")}
    assert sizes == {3: 2, 4: 1, 6: 1, 8: 2, 9: 2, 11: 4, 12: 2, 14: 2}


@pytest.mark.parametrize(
    ("size", "parallel"), [(2, "fsdp"), *(pytest.param(size, "ddp", marks=pytest.mark.slow) for size in (2, 4))]
)
def test_interrupted_between_checkpoints_and_log_lines_equals_undisturbed_byte_for_byte(
    size: int, parallel: str, digits: Path, preset: Path, tmp_path: Path
) -> None:
    options = {
        "preset": str(preset),
        "schedule": "adaptive",
        "log_every": 3,
        "save_every": 4,
        "steps": 12,
        "parallel": parallel,
    }
    job = {"size": size, "data": str(digits), "options": options}
    pieces = [{**job, "out": "pieces", "killed": step} for step in (5, 10, None)]
    succeeded(tmp_path, [{**job, "out": "whole"}, *pieces])
    runs = [latest(tmp_path / out) for out in ("whole", "pieces")]
    assert runs[0] is not None and runs[1] is not None and runs[0].step == 12
    for name in runs[0].meta.files:
        if name.endswith(".safetensors"):
            assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes(), name
    log = "losslog.jsonl"
    assert (tmp_path / "whole" / log).read_bytes() == (tmp_path / "pieces" / log).read_bytes()


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_nan_in_one_process_is_named_by_all_and_reaches_no_weights(
    parallel: str, digits: Path, preset: Path, tmp_path: Path
) -> None:
    options = {"preset": str(preset), "steps": 10, "save_every": 4, "log_every": 3, "parallel": parallel, "keep": 9}
    job = {"size": 2, "data": str(digits)}
    bad = {**job, "out": "bad", "options": options, "poison": [7, 13]}
    codes, said = grouped(tmp_path, [bad, {**job, "out": "good", "options": options}])
    assert codes == [[4, 4], [0, 0]], said
    state = TrainState(resolve(options, Dataset(digits)), Dataset(digits))
    logsnr, image = float(state.schedule.logsnr(state.batches.times(6))[13]), state.batches.indices(6)[13]
    for rank in (0, 1):
        assert (
            f"rank {rank} says: step 7: loss nan at logsnr {logsnr:.4g} (image {image} of the dataset, 1 of 16" in said
        )
    paths = [checkpoints(tmp_path / out) for out in ("bad", "good")]
    assert [path.name for path in paths[0]] == ["step-00000004"]
    assert (paths[0][0] / "model.safetensors").read_bytes() == (paths[1][0] / "model.safetensors").read_bytes()


def test_an_error_in_one_process_ends_all_with_its_message(digits: Path, preset: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    other.write_bytes(digits.read_bytes()[:200])
    code = f"""
import sys
sys.path.insert(0, {str(GROUP.parent)!r})
import group
from pathlib import Path
def work(world):
    with world.together():
        from elbocli.files.dataset import Dataset
        Dataset(Path({str(other)!r}) if world.rank == 1 else Path({str(digits)!r}))
print(group.forked(3, work))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "[1, 1, 1]\n", result.stderr
    for rank in range(3):
        assert f"rank {rank} says: rank 1: {other}" in result.stderr


def test_all_units_are_compiled_however_many_kinds_there_are() -> None:
    code = """
import torch
from torch import nn
from torch._dynamo.utils import counters
from elbocli.train.state import compile_units
class Unit(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
    def forward(self, x):
        return x + len(self.kind)
whole = nn.Module.compile
nn.Module.compile = lambda self, **how: whole(self, backend="eager", **how)
compile_units(units := [Unit("x" * k) for k in range(12)])
for unit in units:
    unit(torch.zeros(2))
print(counters["frames"]["ok"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "12\n", result.stderr


def test_a_process_that_dies_is_missed_by_the_others(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(GROUP.parent)!r})
import group
def work(world):
    if world.rank == 1:
        os._exit(9)
    world.most([0])
print(group.forked(2, work))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "[1, 9]\n", result.stderr
    assert "another process of this run has ended" in result.stderr


def test_a_batch_is_shared_evenly_in_as_many_parts_everywhere() -> None:
    for size in (1, 2, 3, 5, 8):
        for batch in (8, 9, 31, 64):
            for most in (1, 2, 5, 64):
                worlds = [World(rank, size) for rank in range(size)]
                try:
                    parts = [split(world, batch, most) for world in worlds]
                except UsageError:
                    assert -(-(batch // size + (batch % size > 0)) // most) > batch // size
                    continue
                assert [place for rank in parts for part in rank for place in part] == list(range(batch))
                assert len({len(rank) for rank in parts}) == 1
                assert all(0 < len(part) <= most for rank in parts for part in rank)

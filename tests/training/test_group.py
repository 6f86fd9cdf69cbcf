"""A run in several processes, replicated or sharded, has the losses and checkpoints of one process; all of them end together."""

import ctypes
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from group import in_processes, lines_of, train_here, weights_of
from safetensors.torch import load

from elbocli.files.checkpoint import checkpoints, read_checkpoint, step_of
from elbocli.files.dataset import Dataset
from elbocli.runs.settings import resolve
from elbocli.runtime import processes
from elbocli.runtime.processes import to_local
from elbocli.training.state import TrainState
from elbocli.training.step import update

SMALL = {"network.levels": [1], "network.attention": [], "network.dropout": 0.0}
ALONE = (1, "ddp")
FEW = ((2, "ddp"), (2, "fsdp"))
ALL = (*FEW, (4, "ddp"), (4, "fsdp"))
PRESETS = {
    "unet": "channels: 8, levels: [1], blocks: 1, attention: []",
    "edm2": "family: edm2, channels: 8, levels: [1, 2], blocks: 1, attention: [4]",
}
TRAIN = """
train: {prediction: v, schedule: adaptive, logsnr_min: -10, logsnr_max: 10, steps: 4, batch_size: 14, lr: 2.0e-3, warmup_steps: 3,
        ema: 0.9, label_dropout: 0.2, flip: true, save_every: 4, preview_every: 4, log_every: 1}
"""


def succeeded(*jobs):
    """Do the jobs, in every process."""
    codes, said = in_processes(*jobs)
    assert not any(map(any, codes)), said


def column(file, key):
    """A number of each line that has it."""
    found = np.array([row[key] for row in lines_of(file) if key in row])
    assert len(found), key
    return found


NODES = (4, "hsdp")
MUON = {"optimizer": "muon", "batch_size": 16, "micro_batch": 8}
LONGER = [pytest.param("unet", {}, (*FEW[1:], NODES), marks=pytest.mark.long)]
LONGER += [
    pytest.param("edm2", {}, ALL, marks=pytest.mark.slow),
    pytest.param("unet", {"compile": True}, (FEW[0], NODES), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "more", "ways"), [("unet", {}, FEW[:1]), ("unet", MUON, FEW), *LONGER])
def test_losses_do_not_depend_on_processes_or_how_they_share(family, more, ways, digits, tmp_path):
    """With a batch that neither two parts nor four processes divide evenly. hsdp: two nodes of two processes."""
    preset = tmp_path / "preset.yaml"
    preset.write_text(f"network: {{{PRESETS[family]}, dropout: 0.0}}{TRAIN}")
    options = {"preset": str(preset), "val_split": 20, "val_every": 2, "eval_every": 4, "eval_samples": 41, **more}
    jobs = [
        {"size": size, "data": digits, "out": tmp_path / f"{size}-{way}", "node": 2 if way == "hsdp" else 0}
        | {
            "options": {
                **options,
                "parallel": way.replace("hs", "fs"),
                "micro_batch": more.get("micro_batch", {"hsdp": 2}.get(way, 3 if size == 2 else 0)),
            }
        }
        for size, way in (ALONE, *ways)
    ]
    succeeded(*jobs)
    alone = jobs[0]["out"]
    for run in (job["out"] for job in jobs[1:]):
        for name, keys in (
            ("metrics.jsonl", ("loss", "grad_norm", "val_loss", "val_bpd")),
            ("losslog.jsonl", ("sum", "count")),
        ):
            for key in keys:
                wanted, found = (column(path / name, key) for path in (alone, run))
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-12, err_msg=f"{run.name} {key}")
        wanted, found = (column(path / "metrics.jsonl", "eval_frechet_distance[elbo-tiny]") for path in (alone, run))
        np.testing.assert_allclose(found, wanted, rtol=1e-2)  # a pixel may round otherwise
        whole, other = (load(weights_of(path)["ema-0.9.safetensors"]) for path in (alone, run))
        assert whole.keys() == other.keys()
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
        assert (run / "previews" / "step-00000004.png").exists()
    assert column(alone / "losslog.jsonl", "count").sum() == 4 * more.get("batch_size", 14)


def exchanges(world, data, preset, node, shards):
    """Count the sums of gradients over the copies of the weights in an update, for one micro-batch and for four."""
    os.environ["LOCAL_WORLD_SIZE"] = str(node)
    dataset = Dataset(Path(data))
    counts = []
    for images in (4, 1):
        options = {"preset": preset, "parallel": "fsdp", "batch_size": 4 * world.size, "micro_batch": images, **SMALL}
        state = TrainState(resolve(options, dataset), dataset, world)
        assert state.spread.shards == shards
        some = next(weight for weight in state.network.parameters() if len(weight) % shards == 0)
        assert to_local(some).numel() == some.numel() // shards
        with patch("torch.distributed.all_reduce", wraps=torch.distributed.all_reduce) as exchanged:
            update(state)
        counts.append(sum("group" in call.kwargs for call in exchanged.mock_calls))
        assert len(state.batches.parts) == 4 // images
    assert counts[0] == counts[1] and (counts[0] > 0) == (shards < world.size)


def test_nodes_of_one_process_share_the_weights_and_others_exchange_gradients_once_an_update(digits, preset):
    job = {"work": f"{__file__}:exchanges", "data": digits, "preset": preset}
    succeeded({**job, "size": 2, "node": 1, "shards": 2}, {**job, "size": 4, "node": 2, "shards": 2})


@pytest.mark.long
@pytest.mark.parametrize("learned", [{"weighting": "uncertainty:monotone"}])
def test_processes_begin_from_the_same_run_and_learn_the_same_weighting(learned, digits, preset, tmp_path):
    first = tmp_path / "first"
    train_here(digits, first, preset, steps=10, **SMALL)
    options = {**learned, "network.dropout": 0.0, "steps": 12, "log_every": 4, "lr": 1e-4}
    jobs = [
        {"size": size, "data": digits, "out": tmp_path / f"{size}-{way}", "init": first}
        | {"options": {**options, "save_every": 12, "conditional": False, "parallel": way}}
        for size, way in (ALONE, *FEW)
    ]
    succeeded(*jobs)
    for name, key in (("metrics.jsonl", "loss"), ("losslog.jsonl", "weight")):
        alone, *shared = (column(job["out"] / name, key) for job in jobs)
        np.testing.assert_allclose(shared, [alone] * 2, rtol=1e-4)
    assert bool((np.diff(alone) <= 0).all()) and not np.array_equal(alone[0], alone[-1])


@pytest.mark.long
def test_a_run_goes_on_with_other_numbers_of_processes_and_the_other_way_of_sharing(digits, preset, tmp_path):
    options = {"preset": str(preset), "schedule": "adaptive", "steps": 9, "log_every": 3, "save_every": 3, "keep_last": 99}
    options |= SMALL
    plan = [(2, "ddp", 2), (1, "ddp", 4), (2, "fsdp", 5), (3, "fsdp", 7), (2, "ddp", None)]
    job = {"data": digits, "out": tmp_path / "mixed"}
    mixed = [
        {**job, "size": size, "options": {**options, "parallel": way}, "ends": step and ("SIGUSR1", step)}
        for size, way, step in plan
    ]
    codes, said = in_processes(*mixed, {**job, "size": 1, "out": tmp_path / "alone", "options": options})
    assert codes == [[138] * 2, [138], [138] * 2, [138] * 3, [0] * 2, [0]], said
    runs = [tmp_path / name for name in ("mixed", "alone")]
    for name, key in (("metrics.jsonl", "loss"), ("losslog.jsonl", "sum")):
        mix, alone = (column(run / name, key) for run in runs)
        assert len(mix) == 3
        np.testing.assert_allclose(mix, alone, rtol=1e-3, atol=1e-5)
    weights = [load(weights_of(run)["model.safetensors"]) for run in runs]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-2, atol=1e-3)
    sizes = {step_of(path): read_checkpoint(path).meta.world_size for path in checkpoints(runs[0])}
    assert sizes == {2: 2, 3: 1, 4: 1, 5: 2, 6: 3, 7: 3, 9: 2}


def test_nan_in_one_process_is_named_by_all_and_reaches_no_weights(digits, preset, tmp_path):
    options = {"preset": str(preset), "steps": 6, "save_every": 4, "log_every": 3, "keep_last": 9, **SMALL}
    job = {"data": digits, "options": options}
    bad = tmp_path / "bad"
    good = tmp_path / "good"
    ways = [{**options, "steps": steps} for steps in (6, 4)]
    jobs = [{**job, "out": bad, "options": ways[0], "poison": [5, 13]}, {**job, "out": good, "options": ways[1]}]
    codes, said = in_processes(*jobs)
    assert codes == [[4, 4], [0, 0]], said
    assert [said.count(f"rank {rank} says: step 5: loss nan, ") for rank in (0, 1)] == [1, 1]
    assert weights_of(bad) == weights_of(good)


# --- ends of all processes ---


def fails(world, there):
    """Meet an error in one process."""
    with world.together():
        if world.rank == 1:
            Dataset(Path(there))


def dies(world):
    """End without a word, in one process."""
    if world.rank == 1:
        os._exit(9)
    world.most([0])


def hangs(world):
    """Fail in one process, where torch never lets go of Python's lock while it takes the group apart."""
    processes.ENDING_S = 0.5
    if world.rank == 1:
        patch("torch.distributed.destroy_process_group", lambda: ctypes.PyDLL(None).sleep(1000)).start()
        raise ValueError("this process alone fails")
    world.most([0])


def test_a_process_that_fails_dies_or_hangs_ends_the_others(tmp_path):
    jobs = [
        {"size": 3, "work": f"{__file__}:fails", "there": tmp_path / "none.h5"},
        *({"work": f"{__file__}:{name}"} for name in ("dies", "hangs")),
    ]
    codes, said = in_processes(*jobs)
    assert codes == [[1, 1, 1], [1, 9], [1, 1]], said
    assert [said.count(f"rank {rank} says: rank 1: {tmp_path / 'none.h5'}") for rank in range(3)] == [1, 1, 1]
    assert said.count("another process of this run has ended") == 2

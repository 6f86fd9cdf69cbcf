"""Everything that happens to long runs, made to happen: what is said, what is kept, what goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from harness import heard
from torch.utils._python_dispatch import TorchDispatchMode

from elbocli.errors import DataError, FormatError, Interrupted, NonFiniteError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import checkpoints, latest, read_checkpoint
from elbocli.files.dataset import Dataset
from elbocli.run import settings
from elbocli.runtime.background import ORPHAN, Ending, Signals, catching_signals
from elbocli.train import loop
from elbocli.train.batches import Batches
from elbocli.train.state import TrainState
from elbocli.train.step import check, update

pytestmark = pytest.mark.usefixtures("short_previews")


def small(dataset: Path, preset: Path, **options: object) -> settings.Resolved:
    return settings.resolve({"preset": str(preset), **options}, Dataset(dataset))


def train(
    dataset: Path, out: Path, resolved: settings.Resolved, counted: Any = lambda *_: None, **more: Any
) -> list[str]:
    """A run; what is said. counted: is called with each count, as show_progress_with takes it."""
    with heard(counted) as lines:
        loop.run(Dataset(dataset), out, resolved, **more)
    return lines


def weights_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("*.safetensors")}


def steps_of(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(run)]


def status_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


# --- losses that are not finite ---


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps (from 1) in which the sixth image is NaN."""
    steps: set[int] = set()
    whole = Batches.at

    def at(self: Batches, step: int, which: int = 0) -> Any:
        x, eps, labels = whole(self, step, which)
        if step + 1 in steps and 5 in self.parts[which]:
            x[5 - self.parts[which].start] = math.nan
        return x, eps, labels

    monkeypatch.setattr(Batches, "at", at)
    return steps


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_nan_at_a_step_is_named_with_its_logsnr_and_image_and_the_weights_are_those_before(
    micro_batch: int, digits: Path, preset: Path, poisoned: set[int]
) -> None:
    resolved = small(digits, preset, micro_batch=micro_batch)
    clean, sick = (TrainState(resolved, Dataset(digits)) for _ in range(2))
    for _ in range(6):
        update(clean)
    poisoned.add(7)
    for _ in range(10):
        update(sick)
    logsnr = float(sick.schedule.logsnr(sick.batches.times(6))[5])
    image = sick.batches.indices(6)[5]
    with pytest.raises(NonFiniteError) as caught:
        check(sick)
    said = str(caught.value)
    assert f"step 7: loss nan at logsnr {logsnr:.4g} (image {image} of the dataset, 1 of 16 losses" in said
    assert caught.value.exit_code == 4
    for name, value in clean.live.items():
        assert torch.equal(sick.live[name], value), name
    for index, one in clean.optimizer.state_dict()["state"].items():
        for key, value in one.items():
            assert torch.equal(sick.optimizer.state_dict()["state"][index][key], value), key


def test_a_run_that_meets_nan_ends_with_its_last_good_checkpoint(
    digits: Path, preset: Path, tmp_path: Path, poisoned: set[int]
) -> None:
    resolved = small(digits, preset, steps=20, save_every=4, log_every=5, keep=9)
    train(digits, tmp_path / "good", resolved)
    poisoned.add(11)
    with pytest.raises(NonFiniteError, match=r"^step 11: "):
        train(digits, tmp_path / "bad", resolved)
    assert steps_of(tmp_path / "bad") == [4, 8]
    assert weights_of(checkpoints(tmp_path / "bad")[-1]) == weights_of(checkpoints(tmp_path / "good")[1])
    assert status_of(tmp_path / "bad")["state"] == "failed"
    assert "step 11" in status_of(tmp_path / "bad")["message"]
    rows = [json.loads(line)["step"] for line in (tmp_path / "bad" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [5, 10]
    poisoned.clear()  # as with a lower lr: the same command goes on
    train(digits, tmp_path / "bad", resolved)
    assert weights_of(checkpoints(tmp_path / "bad")[-1]) == weights_of(checkpoints(tmp_path / "good")[-1])


def test_half_precision_halves_its_scale_instead_of_stopping(digits: Path, preset: Path) -> None:
    state = TrainState(small(digits, preset, precision="bf16"), Dataset(digits))
    state.scaled = True
    state.scale = torch.tensor(2.0**80).double()  # times a gradient above 1 that overflows
    first = {name: value.clone() for name, value in state.live.items()}
    update(state)
    check(state)
    assert float(state.scale) == 2.0**79 and math.isnan(state.interval()[1]), (
        "an interval without an update has no mean"
    )
    while float(state.scale) > 2.0**40 and all(torch.equal(first[k], v) for k, v in state.live.items()):
        update(state)
    assert not all(torch.equal(first[k], v) for k, v in state.live.items())
    check(state)


def test_half_precision_does_not_halve_forever(digits: Path, preset: Path) -> None:
    state = TrainState(small(digits, preset, precision="bf16"), Dataset(digits))
    state.scaled, state.scale = True, state.scale * 2.0**16
    next(state.network.parameters()).register_hook(lambda gradient: gradient * math.nan)
    for _ in range(33):
        update(state)
    check(state)
    assert float(state.scale) == 2.0**-17
    update(state)
    with pytest.raises(NonFiniteError, match="gradient norm nan"):
        check(state)


def test_clipping_divides_the_gradient_down_to_its_bound(digits: Path, preset: Path) -> None:
    moments = []
    for clip in (0.0, 0.25):
        state = TrainState(small(digits, preset, clip=clip), Dataset(digits))
        update(state)
        moments.append(torch.cat([s["exp_avg"].flatten() for s in state.optimizer.state_dict()["state"].values()]))
    assert float(moments[0].norm()) > 0.1 * 0.25
    torch.testing.assert_close(moments[1], moments[0] * (0.1 * 0.25 / moments[0].norm()), rtol=1e-4, atol=1e-9)


# --- the device is not waited for ---


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read, sizes that depend on values."""

    OPS: ClassVar = {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.unique_dim.default,
    }

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        for name in ("tolist", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, method: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(*args, **kwargs)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.OPS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16", "schedule": "adaptive", "micro_batch": 6},
        {
            "ema": ("0.99", "power:std=.1", "halflife:images=100"),
            "flip": True,
        },
    ],
)
def test_no_step_waits_for_the_device_but_the_interval_does(
    options: dict[str, Any], digits: Path, preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = TrainState(small(digits, preset, **options), Dataset(digits))
    update(state)
    with Waits(monkeypatch) as waits:
        for _ in range(3):
            update(state)
        assert waits.count == 0
        state.interval()
        assert waits.count > 0


# --- disks ---


def full(folder: Path) -> Path:
    """A file that takes all the room there is."""
    path = folder / "ballast"
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """32 MB of it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "none", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("folder", ["checkpoints", "snapshots"])
def test_a_full_disk_ends_the_run_and_the_same_command_goes_on_when_there_is_room(
    folder: str, disk: Path, digits: Path, preset: Path, tmp_path: Path
) -> None:
    options = {"steps": 40, "save_every": 5, "log_every": 2, "val_split": 20, "val_every": 160, "keep": 99}
    options |= {"snapshot_every": 8} if folder == "snapshots" else {}
    resolved = small(digits, preset, preview_every=9, **options)
    train(digits, tmp_path / "good", resolved)
    ballast: list[Path] = []

    def counted(done: int, *_: Any) -> None:
        if done == 12 and not ballast:
            time.sleep(0.2)  # step 10 is safe
            ballast.append(full(disk))

    with pytest.raises(DataError, match="No space left"):
        train(digits, disk / "run", resolved, counted)
    assert steps_of(disk / "run") == [5, 10]
    for path in checkpoints(disk / "run"):
        read_checkpoint(path)
    ballast[0].unlink()
    assert "going on after step 10" in " ".join(train(digits, disk / "run", resolved))
    assert not list(disk.glob("run/**/.*tmp"))
    assert weights_of(checkpoints(disk / "run")[-1]) == weights_of(checkpoints(tmp_path / "good")[-1])
    for name in ("losslog.jsonl", "validation.jsonl"):
        assert (disk / "run" / name).read_bytes() == (tmp_path / "good" / name).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "ema-0.9.safetensors", "state.pt", "meta.json"])
def test_a_flipped_bit_in_any_file_of_the_newest_checkpoint_is_named_and_the_one_before_used(
    name: str, digits: Path, preset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolved = small(digits, preset, steps=12, save_every=4, keep=3)
    train(digits, tmp_path / "run", resolved)
    expected = weights_of(checkpoints(tmp_path / "run")[-1])
    path = checkpoints(tmp_path / "run")[-1] / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    messages = train(digits, tmp_path / "run", resolved)
    assert str(path.parent) in messages[0] and "damaged" in messages[0]
    assert "going on after step 8" in messages[1]
    assert weights_of(checkpoints(tmp_path / "run")[-1]) == expected


def test_damaged_checkpoints_of_later_steps_keep_no_whole_one_from_staying(
    digits: Path, preset: Path, tmp_path: Path
) -> None:
    train(digits, tmp_path / "run", small(digits, preset, steps=6, save_every=2, keep=3))
    for path in checkpoints(tmp_path / "run")[1:]:
        (path / "state.pt").write_bytes(b"")
    train(digits, tmp_path / "run", small(digits, preset, steps=3, keep=2))
    assert steps_of(tmp_path / "run") == [2, 3]
    saved = latest(tmp_path / "run")
    assert saved is not None and saved.step == 3


def test_when_no_checkpoint_is_whole_nothing_is_trained_over_them(digits: Path, preset: Path, tmp_path: Path) -> None:
    resolved = small(digits, preset, steps=4, save_every=2)
    train(digits, tmp_path / "run", resolved)
    for path in checkpoints(tmp_path / "run"):
        (path / "state.pt").write_bytes(b"")
    with pytest.raises(FormatError, match="every checkpoint is damaged"):
        train(digits, tmp_path / "run", resolved)
    assert steps_of(tmp_path / "run") == [2, 4]


def test_a_dataset_that_vanishes_while_training_is_missed_only_when_the_run_goes_on(
    digits: Path, preset: Path, tmp_path: Path, elbo: Any
) -> None:
    data = tmp_path / "data.h5"
    data.write_bytes(digits.read_bytes())
    resolved = small(data, preset, steps=12, save_every=4)
    train(data, tmp_path / "run", resolved, lambda done, *_: data.unlink(missing_ok=True) if done == 3 else None)
    assert steps_of(tmp_path / "run")[-1] == 12
    result = elbo("train", data, "-o", tmp_path / "run", "--preset", preset, "--steps", 20)
    assert result.returncode == 1
    assert str(data).encode() in result.stderr and b"Traceback" not in result.stderr
    assert steps_of(tmp_path / "run")[-1] == 12


def test_other_data_under_the_same_name_is_refused(digits: Path, preset: Path, tmp_path: Path, elbo: Any) -> None:
    data = tmp_path / "data.h5"
    data.write_bytes(digits.read_bytes())
    train(data, tmp_path / "run", small(data, preset, steps=2))
    assert elbo("prep", digits, data, "--limit", 200, "--overwrite").returncode == 0
    with pytest.raises(UsageError, match="data payload_sha256: the run has"):
        train(data, tmp_path / "run", small(data, preset, steps=4))


# --- ends that are asked for ---


def test_a_start_that_fails_before_its_first_step_keeps_the_step_that_is_safe(
    digits: Path, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(digits, tmp_path / "run", small(digits, preset, steps=2))
    before = status_of(tmp_path / "run")

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("elbocli.train.loop.TrainState", full)
    with pytest.raises(Exception, match="memory"):
        train(digits, tmp_path / "run", small(digits, preset, steps=4))
    after = status_of(tmp_path / "run")
    assert after["state"] == "failed" and (after["step"], after["images"]) == (2, before["images"])


def test_a_time_limit_ends_the_run_well(digits: Path, preset: Path, tmp_path: Path, elbo: Any) -> None:
    begun = time.monotonic()
    result = elbo("train", digits, "-o", tmp_path / "run", "--preset", preset, "--steps", 10**6, "--time-limit", "2s")
    assert result.returncode == 0, result.stderr
    assert 2 < time.monotonic() - begun < 60
    assert b"ended by its time limit; saved step" in result.stderr
    assert result.stdout.decode() == f"{tmp_path / 'run'}\n"
    assert status_of(tmp_path / "run")["state"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_save_and_end_with_their_code(
    number: signal.Signals, digits: Path, preset: Path, tmp_path: Path
) -> None:
    resolved = small(digits, preset, steps=1000, save_every=1000)
    with pytest.raises(Interrupted, match=rf"^{number.name}: saved step 7 of 1000") as caught:
        train(digits, tmp_path / "run", resolved, lambda done, *_: os.kill(os.getpid(), number) if done == 7 else None)
    assert caught.value.exit_code == 128 + number
    assert steps_of(tmp_path / "run") == [7]
    assert status_of(tmp_path / "run")["state"] == "interrupted"


def test_a_second_ctrl_c_aborts_at_once_but_not_an_echo_of_the_first() -> None:
    code = """
import os, signal, time
from elbocli.runtime import background as signals
with catching_signals() as caught:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(signals.GRACE_S + 0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    print(caught.received, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
    print("still here", flush=True)
""".replace(
        "from elbocli.runtime import background as signals",
        "from elbocli.runtime import background as signals\nfrom elbocli.runtime.background import catching_signals",
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (130, "2\n"), result.stderr


def test_a_launcher_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ending = Ending(Signals(), 0, True)
    assert ending.reason() == 0
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert ending.reason() == ORPHAN
    assert Ending(Signals(), 0, False).reason() == 0


# --- checkpoints beside training ---


def test_training_goes_on_while_a_checkpoint_is_written(
    digits: Path, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    whole = store.save

    def slow(*args: Any) -> Path:
        begun.set()
        assert may_end.wait(60)
        return whole(*args)

    monkeypatch.setattr(store, "save", slow)
    resolved = small(digits, preset, steps=12, save_every=4)
    meanwhile: list[int] = []

    def counted(done: int, *_: Any) -> None:
        assert done != 5 or begun.wait(60)
        if begun.is_set() and not may_end.is_set():
            meanwhile.append(done)
            if done == 7:
                may_end.set()

    train(digits, tmp_path / "run", resolved, counted)
    assert sorted({*meanwhile})[-3:] == [5, 6, 7]
    monkeypatch.setattr(store, "save", whole)
    train(digits, tmp_path / "straight", resolved)
    for one, other in zip(checkpoints(tmp_path / "run"), checkpoints(tmp_path / "straight"), strict=True):
        assert weights_of(one) == weights_of(other), "what is written is of its moment, not of later steps"


def test_milestones_and_what_a_command_uses_stay(digits: Path, preset: Path, tmp_path: Path) -> None:
    resolved = small(digits, preset, steps=40, save_every=4, keep=2, milestone_every=10)
    train(digits, tmp_path / "run", resolved)
    assert steps_of(tmp_path / "run") == [10, 20, 30, 36, 40]
    command = f"cat > /dev/null; sleep 1; ls $ELBO_CHECKPOINT >> {tmp_path}/seen"
    resolved = small(digits, preset, steps=40, save_every=4, keep=1)
    train(digits, tmp_path / "held", resolved, on_checkpoint=command)
    assert (tmp_path / "seen").read_text().count("model.safetensors") >= 2
    assert status_of(tmp_path / "held")["state"] == "done"


def test_catching_signals_gives_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with catching_signals():
        assert signal.getsignal(signal.SIGUSR1) is not before[2]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_logs_that_somebody_has_cut_or_removed_go_on_from_their_end(digits: Path, preset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(digits, run, small(digits, preset, steps=4, log_every=1))
    (run / "losslog.jsonl").unlink()
    first = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0]
    (run / "metrics.jsonl").write_bytes(first)
    for steps in (6, 8):  # twice, as what the first leaves is what the second cuts
        train(digits, run, small(digits, preset, steps=steps, log_every=1))
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 5, 6, 7, 8]
    header, *rows = map(json.loads, (run / "losslog.jsonl").read_text().splitlines())
    assert "format" in header and [row["step"] for row in rows] == [5, 6, 7, 8]


def test_the_newest_checkpoint_is_the_last_step(digits: Path, preset: Path, tmp_path: Path) -> None:
    train(digits, tmp_path / "run", small(digits, preset, steps=7, save_every=3, log_every=2))
    saved = latest(tmp_path / "run")
    assert saved is not None and saved.step == 7
    assert saved.meta.log_bytes["metrics.jsonl"] == (tmp_path / "run" / "metrics.jsonl").stat().st_size

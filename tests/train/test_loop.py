"""Training: what survives, what is refused, what is said."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import heard
from identities import eps_hat
from safetensors.torch import load_file

from elbocli.core.streams import Stream
from elbocli.core.training import LR_DECAYS, learning_rate
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files.checkpoint import latest, read_config
from elbocli.files.dataset import Dataset
from elbocli.run import settings
from elbocli.run.train_settings import SETTINGS
from elbocli.train import loop
from elbocli.train.batches import Batches
from elbocli.train.state import TrainState
from elbocli.train.step import check, update

KILLER = Path(__file__).parent / "kill_and_resume.py"


def small(dataset: Path, preset: Path, **options: object) -> settings.Resolved:
    return settings.resolve({"preset": str(preset), **options}, Dataset(dataset))


def drain(dataset: Path, out: Path, resolved: settings.Resolved) -> list[str]:
    with heard() as lines:
        loop.run(Dataset(dataset), out, resolved)
    return lines


def weights_of(run: Path) -> dict[str, bytes]:
    saved = latest(run)
    assert saved is not None
    return {name: (saved.path / name).read_bytes() for name in saved.meta.files if name.endswith(".safetensors")}


def metrics_of(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]


SLOW = [
    *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, "ddp", 20), (2, "ddp", 8))),
    pytest.param(2, "fsdp", 3, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("size", "parallel", "kills"), [(1, "ddp", 3), *SLOW])
def test_killed_at_random_moments_and_resumed_equals_undisturbed_byte_for_byte(
    size: int, parallel: str, kills: int, digits: Path, preset: Path, tmp_path: Path
) -> None:
    for run, wanted in (("whole", 0), ("killed", kills)):
        line = [sys.executable, KILLER, digits, preset, tmp_path / run, wanted, 7, size, parallel]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if size > 1 else None
        result = subprocess.run(
            [str(part) for part in line], capture_output=True, text=True, timeout=900, check=False, env=environment
        )
        assert result.returncode == 0, result.stderr
        assert int(result.stdout) == wanted
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "whole")
    log = "losslog.jsonl"
    assert (tmp_path / "killed" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals, code: int, digits: Path, preset: Path, tmp_path: Path
) -> None:
    line = [
        sys.executable,
        "-m",
        "elbocli",
        "train",
        str(digits),
        "-o",
        "run",
        "--preset",
        str(preset),
        "--steps",
        "2000",
        "--save-every",
        "100000",
    ]
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or not log.stat().st_size:
        time.sleep(0.05)
        assert process.poll() is None, process.stderr and process.stderr.read()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on" in stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "interrupted" and 0 < status["step"] < 2000
    messages = drain(digits, tmp_path / "run", small(digits, preset, steps=status["step"] + 3, save_every=100000))
    assert f"going on after step {status['step']}" in messages[0]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_stopping_between_log_lines_changes_nothing(digits: Path, preset: Path, tmp_path: Path) -> None:
    drain(digits, tmp_path / "whole", small(digits, preset, steps=40, log_every=5))
    for steps in (13, 28, 40):
        drain(digits, tmp_path / "pieces", small(digits, preset, steps=steps, log_every=5, keep=9))
    assert weights_of(tmp_path / "pieces") == weights_of(tmp_path / "whole")


def test_what_is_to_be_saved_is_not_touched_by_later_steps(digits: Path, preset: Path) -> None:
    """It is written by a thread, while training goes on."""
    state = TrainState(small(digits, preset, schedule="adaptive"), Dataset(digits))
    update(state)
    taken = state.snapshot()
    before = pickle.dumps(taken)
    for _ in range(2):
        update(state)
        state.interval()
    assert pickle.dumps(taken) == before


def test_another_setting_is_refused_with_the_difference(digits: Path, preset: Path, trained: Path) -> None:
    with pytest.raises(UsageError, match=r"--lr: the run has 0\.002, asked for 0\.001"):
        drain(digits, trained, small(digits, preset, lr=0.001))


def test_a_run_without_a_checkpoint_may_go_on_with_other_settings(digits: Path, preset: Path, tmp_path: Path) -> None:
    """It ran out of memory, say: nothing is lost with a smaller batch."""
    out = tmp_path / "run"

    def until(step: int, batch: int) -> None:
        def counted(done: int, *_: object) -> None:
            if done == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), heard(counted):
            loop.run(Dataset(digits), out, small(digits, preset, batch=batch, steps=4, log_every=2))

    until(0, batch=16)
    until(2, batch=8)
    assert read_config(out).settings["batch"] == 8 and not list(out.glob("checkpoints/step-*"))
    until(0, batch=4)
    assert read_config(out).settings["batch"] == 4


def test_a_folder_that_is_no_run_is_left_alone(digits: Path, preset: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="is not a run"):
        drain(digits, tmp_path, small(digits, preset))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]


def test_a_loss_that_is_not_finite_names_its_logsnr_and_image_before_the_update(digits: Path, preset: Path) -> None:
    state = TrainState(small(digits, preset), Dataset(digits))
    update(state)
    with torch.no_grad():
        state.network.last.bias.fill_(3e38)
    before = {key: value.clone() for key, value in state.network.state_dict().items()}
    for _ in range(3):
        update(state)
    with pytest.raises(NonFiniteError, match=r"step 2: loss (inf|nan) at logsnr -?\d") as caught:
        check(state)
    assert caught.value.exit_code == 4
    after = state.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_one_interval_of_the_log_sums_what_every_example_gave(digits: Path, preset: Path) -> None:
    state = TrainState(small(digits, preset), Dataset(digits))
    for _ in range(5):
        update(state)
    sums, loss, norm = state.interval()
    assert int(sums[0].sum()) == 5 * 16
    assert loss > 0 and norm > 0
    assert state.interval()[0].sum() == 0


def test_every_image_is_seen_once_an_epoch(digits: Path, preset: Path) -> None:
    examples = Batches(Dataset(digits), small(digits, preset, batch=64), torch.device("cpu"))
    seen = np.concatenate([examples.indices(step) for step in range(75)])
    for epoch in range(16):
        assert sorted(seen[epoch * 300 : (epoch + 1) * 300]) == list(range(300))
    assert not np.array_equal(seen[:300], seen[300:600])


def test_label_dropout_and_flip_touch_their_share(digits: Path, preset: Path) -> None:
    data = Dataset(digits)
    plain = Batches(data, small(digits, preset, batch=256, label_dropout=0.0), torch.device("cpu"))
    dropped = Batches(data, small(digits, preset, batch=256, label_dropout=0.25, flip=True), torch.device("cpu"))
    share, turned = [], []
    for step in range(8):
        (x, _, labels), (y, _, some) = plain.at(step), dropped.at(step)
        assert labels is not None and some is not None
        kept = some >= 0
        assert torch.equal(some[kept], labels[kept])
        same = (x == y).flatten(1).all(1)
        assert bool((same | (x.flip(3) == y).flatten(1).all(1)).all())
        share.append(float((~kept).double().mean()))
        turned.append(float((~same).double().mean()))
    assert 0.2 < np.mean(share) < 0.3
    assert 0.4 < np.mean(turned) < 0.6


def test_pixels_arrive_in_minus_one_to_one(digits: Path, preset: Path) -> None:
    data = Dataset(digits)
    examples = Batches(data, small(digits, preset), torch.device("cpu"))
    x, _, _ = examples.at(0)
    expected = data.batch(examples.indices(0)).transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)


def test_an_adaptive_schedule_moves_towards_weighting_times_error(digits: Path, preset: Path) -> None:
    state = TrainState(small(digits, preset, schedule="adaptive", batch=64, log_every=5), Dataset(digits))
    start = state.schedule
    for step in range(60):
        update(state)
        if step % 5 == 4:
            state.interval()
    assert state.online is not None
    middle = 0.5 * (state.edges[1:] + state.edges[:-1])
    wanted = state.weighting(middle) * state.online.moments().smoothed.mean
    wanted = wanted / wanted.sum()
    got = state.schedule.density(middle) * state.edges.diff()
    assert float((got - wanted).abs().sum() / 2) < 0.01
    assert float((start.density(middle) * state.edges.diff() - wanted).abs().sum() / 2) > 0.2


def test_bf16_trains_and_keeps_float32_weights(digits: Path, preset: Path, tmp_path: Path) -> None:
    drain(digits, tmp_path / "run", small(digits, preset, precision="bf16", steps=10))
    saved = latest(tmp_path / "run")
    assert saved is not None
    assert all(value.dtype == torch.float32 for value in load_file(saved.path / "model.safetensors").values())
    assert metrics_of(tmp_path / "run")[-1]["loss"] < 3


def test_the_learning_rate_in_the_log_is_the_one_of_its_step(digits: Path, preset: Path, tmp_path: Path) -> None:
    options = {"preset": str(preset), "steps": 6, "log_every": 1, "warmup": 4, "lr": 1.0}
    loop.run(Dataset(digits), tmp_path / "run", settings.resolve(options, Dataset(digits)))
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [row["lr"] for row in rows] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("decay", ["cosine:final=.1", "linear", "rsqrt:ref=3"])
def test_a_rate_that_decays_is_used_logged_and_gone_on_with(
    decay: str, digits: Path, preset: Path, tmp_path: Path
) -> None:
    """A run of other steps follows the curve of those from where it goes on."""
    options = {"steps": 12, "log_every": 1, "warmup": 4, "lr": 1e-3, "lr_decay": decay}
    declared = LR_DECAYS.parse(decay)

    def rates(steps: int, done: range) -> list[float]:
        return [learning_rate(each, steps, 1e-3, 4, declared) for each in done]

    for steps in (12, 20):
        drain(digits, tmp_path / "run", small(digits, preset, **{**options, "steps": steps}))
    assert [row["lr"] for row in metrics_of(tmp_path / "run")] == rates(12, range(12)) + rates(20, range(12, 20))
    state = TrainState(small(digits, preset, **options), Dataset(digits))
    for each in rates(12, range(5)):
        update(state)
        assert state.optimizer.param_groups[0]["lr"] == each
    drain(digits, tmp_path / "whole", small(digits, preset, **options, save_every=5))
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-00000012")
    before = metrics_of(tmp_path / "whole")
    drain(digits, tmp_path / "whole", small(digits, preset, **options, save_every=5))
    assert metrics_of(tmp_path / "whole") == before


def test_the_config_of_a_run_holds_all_that_was_resolved(trained: Path) -> None:
    config = read_config(trained)
    assert config.settings["weighting"] == "sigmoid:bias=2"
    assert set(config.settings) == {name for name, setting in SETTINGS.items() if setting.says("stored", True)}
    assert config.network["num_classes"] == 10
    assert len(list((trained / "previews").glob("*.png"))) == 2


@pytest.mark.slow
def test_the_same_weighting_on_two_schedules_learns_the_same_error_at_every_logsnr(
    digits: Path, tmp_path: Path
) -> None:
    curves = []
    for schedule in ("cosine", "uniform"):
        resolved = settings.resolve(
            {"preset": "digits", "weighting": "edm-monotonic", "schedule": schedule, "steps": 800, "preview_every": 0},
            Dataset(digits),
        )
        state = TrainState(resolved, Dataset(digits))
        for _ in range(800):
            update(state)
        state.network.load_state_dict(next(iter(state.ema.values())))
        curves.append(error_curve(state))
    ratio = np.array(curves[0]) / np.array(curves[1])
    assert np.all(np.abs(np.log(ratio)) < 0.15), ratio


def error_curve(state: TrainState) -> list[float]:
    """ε error at seven λ, the same draws for every state."""
    curve = []
    data = state.dataset
    x = torch.from_numpy(data.batch(np.arange(256))).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(data.labels[:256])
    eps = Stream(1, "curve").normal(range(256), x.shape[1:])
    state.network.eval()
    for logsnr in (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0):
        at = torch.full((256,), logsnr, dtype=torch.float64)
        c = state.prediction.coefficients(at)
        z = c.alpha.float().view(-1, 1, 1, 1) * x + c.sigma.float().view(-1, 1, 1, 1) * eps
        with torch.no_grad():
            out = state.network(z * c.c_in.float().view(-1, 1, 1, 1), at.float(), labels)
        curve.append(float((eps_hat(state.prediction, out, z, at) - eps).square().mean()))
    return curve


def test_what_may_take_long_after_a_step_is_said_before_it(
    digits: Path, preset: Path, tmp_path: Path, short_previews: None
) -> None:
    options = {"steps": 4, "log_every": 2, "val_split": 20, "val_every": 32, "preview_every": 4}
    said: list[tuple[int, str]] = []
    with heard(lambda done, total, unit, then, values: said.append((done, then)) if then else None):
        loop.run(Dataset(digits), tmp_path / "run", small(digits, preset, **options))
    assert said == [(2, "validating"), (4, "validating"), (4, "drawing a preview")]

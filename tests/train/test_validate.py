"""Validation: the right numbers, the same for any number of processes, and equally many calls on each."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elbocli.bound import estimate
from elbocli.bound.measure import ALL, open_measurement
from elbocli.core.prediction import Prediction
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files import losslog
from elbocli.files.checkpoint import RunConfig
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import read_logs
from elbocli.info import describe as info
from elbocli.run import settings
from elbocli.run.open import TrainedRun, open_run
from elbocli.train.batches import Batches
from elbocli.train.recorder import DRAWS, Validation, open_held_out
from elbocli.train.step import step_losses

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def make(digits: Path, preset: Path) -> Callable[..., Validation]:
    """make(rows=…, **settings): validation on rows of the digits, all if none are named."""

    def validation(rows: np.ndarray | None = None, **options: Any) -> Validation:
        data = Dataset(digits)
        resolved = settings.resolve({"preset": str(preset), **options}, data)
        held = (data, np.arange(300) if rows is None else rows)
        if options.get("val_split"):
            held = open_held_out(resolved.settings, data, True) or held
        return Validation(held, resolved, CPU)

    return validation


@pytest.fixture(scope="module")
def run(trained: Path) -> TrainedRun:
    return open_run(trained, CPU)


def nothing(z: torch.Tensor, logsnr: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros_like(z)


@pytest.mark.parametrize("images", [299, 100, 7])
def test_shares_of_any_number_of_processes_add_up_to_the_same(
    images: int, make: Callable[..., Validation], run: TrainedRun
) -> None:
    asked = make(np.arange(images), precision="fp32")
    whole = asked.partial(run.network)
    assert whole.dtype == torch.float64
    assert float(whole[0, :-2].sum()) == images * DRAWS and whole[0, -2:].tolist() == [images, images]
    for size in (2, 4):
        parts = torch.stack([asked.partial(run.network, rank, size) for rank in range(size)])
        assert torch.equal(parts[:, 0].sum(0), whole[0])
        torch.testing.assert_close(parts.sum(0), whole, rtol=1e-6, atol=0)


def test_every_process_asks_equally_often_with_equally_many_inputs(make: Callable[..., Validation]) -> None:
    """Or a sharded network would wait for ever."""
    asked, calls = make(np.arange(193)), [[], [], []]  # 64 at once and one more
    for rank in range(3):

        def network(z: torch.Tensor, *_: Any, into: list[Any] = calls[rank]) -> torch.Tensor:
            into.append(tuple(z.shape))
            return torch.zeros_like(z)

        asked.partial(network, rank, 3)
    assert calls[0] == calls[1] == calls[2] and len(set(calls[0])) == 1


def test_every_held_out_image_is_shown_once_with_its_class(make: Callable[..., Validation], digits: Path) -> None:
    rows, data = np.arange(0, 300, 3), Dataset(digits)
    images = torch.from_numpy(data.batch(rows)).flatten(1) / 127.5 - 1
    shown: list[tuple[int, int]] = []

    def network(z: torch.Tensor, logsnr: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        clean = logsnr > 5  # one draw of each image's four is: its noise is too small to hide which image it is
        nearest = torch.cdist(z[clean].flatten(1), images).argmin(1)
        shown.extend(zip(nearest.tolist(), labels[clean].tolist(), strict=True))
        return torch.zeros_like(z)

    asked = make(rows)
    sums = sum(asked.partial(network, rank, 3) for rank in range(3))
    assert float(sums[0, -1]) == len(rows)
    extra = 3 * 64 - len(rows)  # the last image again, to make the shares even
    assert sorted(shown) == sorted((k, int(data.labels[rows[k]])) for k in [*range(100), *[99] * extra])


def test_draws_are_the_same_every_time_and_touch_nothing(make: Callable[..., Validation], run: TrainedRun) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    asked = make()
    first, again, anew = (each.partial(run.network) for each in (asked, asked, make()))
    assert torch.equal(first, again) and torch.equal(first, anew)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, make(seed=1).partial(run.network))


def test_what_the_noise_alone_gives_is_known(make: Callable[..., Validation]) -> None:
    """A network that says nothing: its error is ε², so all is known but the noise."""
    asked = make(prediction="eps", weighting="elbo")
    sums = asked.partial(nothing)
    error = float(sums[1, :-2].sum() / sums[0, :-2].sum())
    assert error == pytest.approx(1, abs=5 * math.sqrt(2 / (64 * 300 * DRAWS)))
    found = asked.finish(sums)
    assert found["val_loss"] == pytest.approx(0.5 * 20 * error, rel=1e-6)  # ½ ∫ 1 · error dλ over a range of 20
    spread = 0.5 * 20 * math.sqrt(2 / (64 * DRAWS)) / math.sqrt(300)
    assert found["val_loss_se"] == pytest.approx(spread, rel=0.2)
    within = sums[2, :-2].sum() / sums[0, :-2].sum() - error**2
    assert float(within) == pytest.approx(2 / 64, rel=0.2)


def test_bits_per_dimension_are_those_of_the_bound(make: Callable[..., Validation], run: TrainedRun) -> None:
    """Against the same images at 48 noise levels each."""
    probe = open_measurement(run.path, None, images=ALL, draws=48, batch=2048)
    wanted = estimate.measure_bound(probe).bound
    asked = make()
    found = asked.finish(asked.partial(run.network))
    assert abs(found["val_bpd"] - wanted.bpd) < 2 * found["val_bpd_se"]
    assert found["val_bpd"] == pytest.approx(wanted.bpd, rel=0.02)
    assert wanted.bpd_se_population < found["val_bpd_se"] < 0.02 * wanted.bpd


@pytest.mark.parametrize("weighting", ["sigmoid:bias=2", "edm-monotonic"])
def test_the_weighted_loss_is_what_training_would_say_of_these_images(
    weighting: str, make: Callable[..., Validation], run: TrainedRun, digits: Path, preset: Path
) -> None:
    options = {
        "preset": str(preset),
        "weighting": weighting,
        "batch": 300,
        "label_dropout": 0.0,
        "network.dropout": 0.0,
    }
    data = Dataset(digits)
    resolved = settings.resolve(options, data)
    batches, w, v = Batches(data, resolved, CPU), resolved.weighting, Prediction("v")
    s = resolved.schedule
    assert s is not None
    with torch.no_grad():
        means = [float(step_losses(run.network, batches, k, 0, w, s, v)[0].mean()) for k in range(20)]
    asked = make(weighting=weighting)
    found = asked.finish(asked.partial(run.network))
    off = np.hypot(np.std(means) / math.sqrt(20), found["val_loss_se"] / 2)
    assert abs(found["val_loss"] - np.mean(means)) < 3 * off
    assert found["val_loss"] == pytest.approx(np.mean(means), rel=0.04)


def test_the_standard_error_holds_for_other_images(make: Callable[..., Validation], run: TrainedRun) -> None:
    """40 choices of 60 out of 300; on the safe side, but not idly so."""
    everything = make()
    wanted = everything.finish(everything.partial(run.network))
    found = [
        asked.finish(asked.partial(run.network)) for asked in (make(val_split=60, seed=seed) for seed in range(40))
    ]
    for key in ("val_loss", "val_bpd"):
        off = [(each[key] - wanted[key]) / each[f"{key}_se"] / math.sqrt(1 - 60 / 300) for each in found]
        assert sum(abs(o) < 1.96 for o in off) >= 36, key
        assert 0.5 < float(np.std(off)) < 1.3, key


def test_all_noise_levels_are_asked_alike(make: Callable[..., Validation]) -> None:
    counts = make().partial(nothing)[0, :-2]
    assert int(counts.min()) >= 9 and int(counts.max()) <= 15  # 12 each; at random a tenth would lie outside
    few = make(np.arange(7)).partial(nothing)[0, :-2]
    assert few.view(4, 25).sum(1).tolist() == [7, 7, 7, 7]


def test_the_error_of_each_noise_level_is_a_loss_log(
    make: Callable[..., Validation], run: TrainedRun, tmp_path: Path
) -> None:
    asked, path = make(), tmp_path / "validation.jsonl"
    sums = asked.partial(run.network)
    path.write_text(asked.header_for(path) + losslog.line(10, 160, sums[:, :-2]) + losslog.line(20, 320, sums[:, :-2]))
    log = read_logs([path])
    assert torch.equal(log.sums, 2 * sums[:, :-2]) and log.images == 320 and log.header.schedule == "uniform"
    told = info.describe(path)
    assert told["is"] == "loss log" and told["held_out"] == 300 and told["intervals"] == 2


def test_other_images_begin_with_a_header_of_their_own(
    make: Callable[..., Validation], digits: Path, preset: Path, tmp_path: Path
) -> None:
    one, other, path = make(np.arange(50)), make(), tmp_path / "validation.jsonl"
    path.write_text(one.header_for(path) + losslog.line(1, 16, one.partial(nothing)[:, :-2]))
    assert not one.header_for(path)
    path.write_text(path.read_text() + other.header_for(path) + losslog.line(2, 32, other.partial(nothing)[:, :-2]))
    assert one.header_for(path) and not other.header_for(path)
    assert read_logs([path]).lines == 2


def test_latents_have_a_loss_and_no_bits(latents: Path, preset: Path) -> None:
    data = Dataset(latents, latents=True)
    resolved = settings.resolve({"preset": str(preset), "val_split": 10}, data)
    held = open_held_out(resolved.settings, data, True)
    assert held is not None
    asked = Validation(held, resolved, CPU)
    parts = [asked.partial(nothing, rank, 2) for rank in range(2)]
    torch.testing.assert_close(sum(parts), asked.partial(nothing), rtol=1e-6, atol=0)
    found = asked.finish(parts[0] + parts[1])
    assert set(found) == {"val_images", "val_loss", "val_loss_se"} and found["val_images"] == 10
    training = Batches(data, resolved, CPU)
    assert training.at(0)[0].shape[1:] == (4, 8, 8) and found["val_loss"] > 0


def test_a_network_that_gives_no_number_is_told_with_its_noise_level(make: Callable[..., Validation]) -> None:
    def network(z: torch.Tensor, logsnr: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.where(logsnr < -9.5, torch.nan, 0.0).view(-1, 1, 1, 1) * z

    asked = make()
    with pytest.raises(NonFiniteError):
        asked.finish(asked.partial(network))


def test_it_is_due_where_so_many_images_are_full_and_at_the_end(make: Callable[..., Validation]) -> None:
    asked = make(val_every=40, steps=9)  # 16 images a step: full at 40, 80, 120
    assert [step for step in range(1, 10) if asked.due(step)] == [3, 5, 8, 9]
    often = make(val_every=10, steps=4)
    assert [step for step in range(1, 5) if often.due(step)] == [1, 2, 3, 4]


def test_left_alone_it_takes_two_percent_of_the_work(make: Callable[..., Validation]) -> None:
    asked, calls = make(np.arange(100)), 0

    def network(z: torch.Tensor, *_: Any) -> torch.Tensor:
        nonlocal calls
        calls += len(z)
        return torch.zeros_like(z)

    asked.partial(network)
    assert 0.018 < 100 * DRAWS / (3 * asked.every) <= 0.02
    assert calls < 100 * DRAWS + 256


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"val": "a.h5", "val_split": 10}, "--val and --val-split: choose one"),
        ({"val_split": -1}, "val_split is -1"),
        ({"val_every": -1}, "val_every is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], said: str, digits: Path, preset: Path) -> None:
    with pytest.raises(UsageError, match=said):
        settings.resolve({"preset": str(preset), **options}, Dataset(digits))


def test_what_is_validated_on_may_change_but_not_the_split(digits: Path, preset: Path) -> None:
    def config(**options: Any) -> RunConfig:
        return settings.resolve({"preset": str(preset), **options}, Dataset(digits)).config()

    old = config()
    assert settings.difference(old, config(val="b.h5", val_every=9)) == []
    (line,) = settings.difference(old, config(val_split=10))
    assert line == "--val-split: the run has 0, asked for 10"

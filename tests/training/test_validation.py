"""Validation holds out the same images every time, and its numbers are the bound's and the loss's, for any number of processes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.bound import estimate
from elbocli.bound.measure import open_measurement
from elbocli.bound.settings import BoundSettings
from elbocli.errors import FormatError, NonFiniteError, UsageError
from elbocli.files import losslog
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import read_losslog
from elbocli.report import describe as info
from elbocli.runs import settings
from elbocli.runs.examples import split_rows, training_rows
from elbocli.runs.open import open_run
from elbocli.runs.train_settings import TrainSettings
from elbocli.training.batches import Batches
from elbocli.training.step import step_losses
from elbocli.training.validation import DRAWS, Validation, open_held_out

CPU = torch.device("cpu")


# --- images that are held out ---


class Rows:
    """Stand-in for a dataset: it has the attributes that a split reads."""

    def __init__(self, count, together):
        self.count = count
        self.latent_space = SimpleNamespace(mirrored=together == 2)

    def __len__(self):
        return self.count


def held_out(seed, count, n, together=1):
    """(rows to train on, rows held out)."""
    return split_rows(TrainSettings(seed=seed, val_split=n), Rows(count, together))  # type: ignore[arg-type]


@given(st.integers(0, 2**40), st.integers(3, 300), st.data(), st.sampled_from([1, 2]))
def test_every_row_is_on_one_side_and_pairs_stay_together(seed, groups, data, together):
    count = groups * together
    n = data.draw(st.integers(2, groups - 1)) * together
    train, out = held_out(seed, count, n, together)
    assert len(out) == n and sorted([*train, *out]) == list(range(count))
    assert (np.diff(train) > 0).all() and (np.diff(out) > 0).all()
    assert set(out // together) & set(train // together) == set()
    assert np.array_equal(out, held_out(seed, count, n, together)[1])


@pytest.mark.parametrize(
    ("count", "n", "together", "word"), [(10, 10, 1, "10 images"), (10, 1, 1, "at least 2"), (10, 3, 2, "mirror")]
)
def test_a_split_that_leaves_nothing_or_parts_pairs_is_refused(count, n, together, word):
    with pytest.raises(UsageError, match=f"--val-split {n}: .*{word}"):
        held_out(0, count, n, together)
    assert len(held_out(0, 10, 9)[1]) == 9 and len(held_out(0, 10, 2)[1]) == 2


def test_training_and_validation_take_the_two_sides_of_one_split(digits, preset):
    data = Dataset(digits)
    split = TrainSettings(val_split=60, seed=5)
    held = open_held_out(split, data, True)
    rows = training_rows(split, data)
    assert held[0] is data
    assert sorted([*held[1], *rows]) == list(range(300))
    assert len(training_rows(TrainSettings(), data)) == 300 and open_held_out(TrainSettings(), data, True) is None
    batches = Batches(data, settings.resolve({"preset": str(preset), "val_split": 60, "seed": 5}, data), CPU)
    assert {*np.concatenate([batches.indices(step) for step in range(15)])} == {*rows}
    fewer = open_held_out(TrainSettings(val_split=60, seed=5, val_images=20), data, True)
    assert len(set(fewer[1])) == 20 and set(fewer[1]) <= set(held[1])


@pytest.mark.parametrize(
    ("size", "channels", "names", "word"),
    [
        *((16, 1, "0123456789", "image_size"), (8, 3, "0123456789", "channels"), (8, 1, "012345678n", "class_names")),
        *((8, 1, "0123456789a", "class"), (8, 1, "0123456789", "")),
    ],
)
def test_another_dataset_is_taken_if_it_is_packed_likewise(size, channels, names, word, pack, images, digits):
    val = TrainSettings(val=str(pack("other.h5", images(50, size, channels), names=names)))
    data = Dataset(digits)
    if word:
        with pytest.raises(UsageError, match=rf"other\.h5: .*{word}"):
            open_held_out(val, data, True)
    if not word or "class" in word:  # without conditions, no class is told
        assert np.array_equal(open_held_out(val, data, not word)[1], np.arange(50))


def test_the_training_images_latents_of_others_and_a_single_image_are_refused(
    digits, latents, make_autoencoder, pack_latents, pack, images
):
    data = Dataset(digits)
    own = Dataset(latents, latents=True)
    for options, trained, word in (
        ({"val": digits}, data, "--val-split"),
        ({"val": pack_latents(make_autoencoder(seed=1))}, own, "autoencoder_sha256"),
        ({"val": pack(), "val_images": 1}, Dataset(pack("b.h5", images(seed=1))), "needs 2 images, found 1"),
    ):
        with pytest.raises(UsageError, match=word):
            open_held_out(TrainSettings(**{**options, "val": str(options["val"])}), trained, True)


# --- numbers ---


@pytest.fixture(scope="module")
def make(digits, preset):
    """make(rows=…, **settings): validation on rows of the digits, all if none are named."""

    def validation(rows=None, **options):
        data = Dataset(digits)
        resolved = settings.resolve({"preset": str(preset), **options}, data)
        held = (data, np.arange(300) if rows is None else rows)
        if options.get("val_split"):
            held = open_held_out(resolved.settings, data, True) or held
        return Validation(held, resolved, CPU)

    return validation


@pytest.fixture(scope="module")
def run(trained):
    return open_run(trained, CPU)


def nothing(z, logsnr, labels):
    return torch.zeros_like(z)


@pytest.mark.parametrize("images", [193, 7])
def test_shares_of_any_number_of_processes_add_up_and_ask_equally_often(images, make, run):
    """Or a sharded network would wait for ever."""
    asked = make(np.arange(images), precision="fp32")
    whole = asked.partial(run.network)
    assert whole.dtype == torch.float64
    assert float(whole[0, :-2].sum()) == images * DRAWS and whole[0, -2:].tolist() == [images, images]
    for size in (2, 3):
        calls = []

        def network(z, *rest, calls=calls):
            calls[-1].append(tuple(z.shape))
            return run.network(z, *rest)

        parts = []
        for rank in range(size):
            calls.append([])
            parts.append(asked.partial(network, rank, size))
        torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=0)
        assert all(each == calls[0] for each in calls) and len(set(calls[0])) == 1


def test_every_held_out_image_is_shown_once_with_its_class(make, digits):
    rows = np.arange(0, 300, 3)
    data = Dataset(digits)
    images = torch.from_numpy(data.read(rows)).flatten(1) / 127.5 - 1
    shown = []

    def network(z, logsnr, labels):
        clean = logsnr > 5  # one draw of each image's four is: its noise is too small to hide which image it is
        nearest = torch.cdist(z[clean].flatten(1), images).argmin(1)
        shown.extend(zip(nearest.tolist(), labels[clean].tolist(), strict=True))
        return torch.zeros_like(z)

    asked = make(rows)
    for rank in range(3):
        asked.partial(network, rank, 3)
    extra = 3 * 64 - len(rows)  # the last image again, to make the shares even
    assert sorted(shown) == sorted((k, int(data.labels[rows[k]])) for k in [*range(100), *[99] * extra])


def test_draws_are_the_same_every_time_and_touch_nothing(make, run):
    before = torch.get_rng_state()
    asked = make()
    first, again, anew = (each.partial(run.network) for each in (asked, asked, make()))
    assert torch.equal(first, again) and torch.equal(first, anew) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, make(seed=1).partial(run.network))


def test_the_numbers_of_a_network_that_says_nothing_are_known(make):
    """Its error is ε², so all is known but the noise."""
    asked = make(prediction="eps", weighting="elbo")
    sums = asked.partial(nothing)
    error = float(sums[1, :-2].sum() / sums[0, :-2].sum())
    assert error == pytest.approx(1, abs=5 * math.sqrt(2 / (64 * 300 * DRAWS)))
    found = asked.finish(sums)
    assert found["val_loss"] == pytest.approx(0.5 * 20 * error, rel=1e-6)  # ½ ∫ 1 · error dλ over a range of 20
    few = torch.rand(5, dtype=torch.float64)
    of_few = torch.stack([few**0, few, few**2]).sum(1, keepdim=True).expand(-1, 2)
    assert asked.finish(of_few)["val_loss_se"] == pytest.approx(float(few.std()) / math.sqrt(5))
    spread = 0.5 * 20 * math.sqrt(2 / (64 * DRAWS)) / math.sqrt(300)
    assert found["val_loss_se"] == pytest.approx(spread, rel=0.2)
    assert float(sums[2, :-2].sum() / sums[0, :-2].sum() - error**2) == pytest.approx(2 / 64, rel=0.2)
    # All noise levels are asked alike.
    counts = sums[0, :-2]
    assert int(counts.min()) >= 9 and int(counts.max()) <= 15  # 12 each; at random a tenth would lie outside
    few = make(np.arange(7)).partial(nothing)[0, :-2]
    assert few.view(4, 25).sum(1).tolist() == [7, 7, 7, 7]


def test_bits_per_dimension_are_those_of_the_bound(make, run):
    """Against the same images at 16 noise levels each."""
    wanted = estimate.measure_bound(open_measurement(run.path, None, BoundSettings(draws=16, batch_size=2048))).bound
    asked = make()
    found = asked.finish(asked.partial(run.network))
    assert abs(found["val_bpd"] - wanted.bpd) < 2 * found["val_bpd_se"]
    assert found["val_bpd"] == pytest.approx(wanted.bpd, rel=0.02)
    assert wanted.bpd_se_population < found["val_bpd_se"] < 0.02 * wanted.bpd


@pytest.mark.parametrize("weighting", ["sigmoid:bias=2", "edm-monotonic"])
def test_the_weighted_loss_is_that_of_training_on_these_images(weighting, make, run, digits, preset):
    options = {"weighting": weighting, "batch_size": 300, "label_dropout": 0.0, "network.dropout": 0.0}
    data = Dataset(digits)
    resolved = settings.resolve({"preset": str(preset), **options}, data)
    batches = Batches(data, resolved, CPU)
    with torch.no_grad():
        means = [float(step_losses(run.network, batches, k, 0, resolved.objective)[0].mean()) for k in range(20)]
    asked = make(weighting=weighting)
    found = asked.finish(asked.partial(run.network))
    off = np.hypot(np.std(means) / math.sqrt(20), found["val_loss_se"] / 2)
    assert abs(found["val_loss"] - np.mean(means)) < 3 * off
    assert found["val_loss"] == pytest.approx(np.mean(means), rel=0.04)


def test_the_errors_are_a_loss_log_with_a_header_for_each_set_of_images(make, tmp_path):
    one = make(np.arange(50))
    other = make()
    path = tmp_path / "validation.jsonl"
    sums = other.partial(nothing)[:, :-2]
    path.write_text(other.header_for(path) + losslog.line(10, 160, sums) + losslog.line(20, 320, sums))
    log = read_losslog(path)
    told = info.describe(path).json()
    assert torch.equal(log.sums, 2 * sums) and log.images == 320 and log.headers[0].schedule == "uniform"
    assert (told["is"], told["held_out"], told["intervals"]) == ("loss log", 300, 2)
    assert not other.header_for(path)
    path.write_text(path.read_text() + one.header_for(path) + losslog.line(30, 480, one.partial(nothing)[:, :-2]))
    assert other.header_for(path) and not one.header_for(path) and len(read_losslog(path).rows) == 3
    path.write_text('{"format"')
    with pytest.raises(FormatError, match=r"validation\.jsonl"):
        one.header_for(path)


def test_latents_have_a_loss_and_no_bits(latents, preset):
    data = Dataset(latents, latents=True)
    resolved = settings.resolve({"preset": str(preset), "val_split": 10}, data)
    held = open_held_out(resolved.settings, data, True)
    asked = Validation(held, resolved, CPU)
    parts = [asked.partial(nothing, rank, 2) for rank in range(2)]
    torch.testing.assert_close(sum(parts), asked.partial(nothing), rtol=1e-6, atol=0)
    found = asked.finish(parts[0] + parts[1])
    assert set(found) == {"val_images", "val_loss", "val_loss_se"} and found["val_images"] == 10
    # Training shows an image anew each time: x0 = (mean + std·η − shift)·scale.
    batches = Batches(data, resolved, CPU)
    space = data.latent_space
    x = batches.at(0)[0]
    rows = batches.indices(0)
    mean, std = torch.from_numpy(data.read(rows)).float().chunk(2, 1)
    shift, scale = (torch.tensor(each).view(1, -1, 1, 1).float() for each in (space.latent_shift, space.latent_scale))
    eta = (x / scale + shift - mean) / std
    assert abs(float(eta.mean())) < 0.1 and float(eta.std()) == pytest.approx(1, abs=0.1)


def test_a_network_that_gives_no_number_ends_the_run(make):
    asked = make()
    with pytest.raises(NonFiniteError):
        asked.finish(asked.partial(lambda z, logsnr, _: torch.where(logsnr < -9.5, torch.nan, 0.0).view(-1, 1, 1, 1) * z))


def test_it_is_due_after_so_many_updates_or_takes_two_percent(make):
    assert [make(val_every=every).every for every in (4, 1)] == [4, 1]
    alone = make(np.arange(100))
    assert 0.018 < 100 * DRAWS / (3 * 16 * alone.every) <= 0.02

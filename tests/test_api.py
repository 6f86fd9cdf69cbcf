"""The Python API does what the commands do, to the bit where they share the draws."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from harness import run_code

import elbocli
from elbocli.bound.measure import open_measurement
from elbocli.core.pixels import to_levels
from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import read_losslog
from elbocli.networks import build
from elbocli.runs.settings import resolve
from elbocli.training.batches import Batches
from elbocli.training.step import step_losses

CPU = torch.device("cpu")
IMPORTED = """
import sys, elbocli
heavy = {"torch", "numpy", "click", "ast"} & set(sys.modules)
from elbocli import *
print(sorted(heavy), [name for name in dir(elbocli) if getattr(elbocli, name, None) is None and name[0] != "_"])
"""


def test_importing_it_imports_nothing_heavy_and_every_name_is_there():
    done = run_code(IMPORTED)
    assert done.stdout == b"[] []\n", done.stderr
    assert {"DiffusionLoss", "draw", "open_run", "variational_bound", "weighting"} <= set(dir(elbocli))
    assert not {"Any", "annotations", "cache", "core", "files"} & set(dir(elbocli))
    with pytest.raises(AttributeError):
        getattr(elbocli, "nothing")  # noqa: B009 - type checkers know that there is none


@pytest.mark.parametrize("schedule", ["cosine", "adaptive"])
def test_the_loss_is_that_of_training_to_the_bit(schedule, digits, preset):
    data = elbocli.open_dataset(digits)
    resolved = resolve({"preset": str(preset), "schedule": schedule, "network.dropout": 0.0, "seed": 3}, data)
    network = build(resolved.network).eval()
    batches = Batches(data, resolved, CPU)
    loss = elbocli.DiffusionLoss("sigmoid", schedule, "v", logsnr_min=-10, logsnr_max=10, seed=3)
    for step in range(3):
        x, _, labels = batches.at(step, 0)
        expected, error, logsnr = step_losses(network, batches, step, 0, loss.objective)
        found = loss(network, x, labels)
        assert torch.equal(found.loss, expected) and torch.equal(found.eps_mse, error)
        assert torch.equal(found.logsnr, logsnr)


def same(z, logsnr, labels):
    return z


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 4, 4)])
def test_ranks_share_a_batch_and_a_saved_loss_goes_on(shape):
    x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    whole = elbocli.DiffusionLoss("edm", "adaptive", "eps")
    parts = [elbocli.DiffusionLoss("edm", "adaptive", "eps", rank=rank, ranks=3) for rank in range(3)]
    for _ in range(2):
        expected = whole(same, x)
        found = [part(same, x[4 * rank : 4 * rank + 4]) for rank, part in enumerate(parts)]
        assert torch.equal(torch.cat([each.loss for each in found]), expected.loss)
        sums = whole.take_sums()
        torch.testing.assert_close(torch.stack([part.take_sums() for part in parts]).sum(0), sums)
        for one in (whole, *parts):
            one.adapt(sums)
    again = elbocli.DiffusionLoss("edm", "adaptive", "eps")
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again(same, x).loss, whole(same, x).loss)


def twice(z, logsnr, labels):
    """A learned variance of one channel, which broadcasts."""
    return torch.cat([z, z], 1)


PIXELS = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
X = elbocli.normalised(PIXELS)
REFUSED = {
    "the loss of another shape": lambda: elbocli.DiffusionLoss()(twice, X),
    "a bound of another shape": lambda: elbocli.variational_bound(twice, "v", PIXELS, draws=2),
    "samples of another shape": lambda: elbocli.draw(lambda z, *_: z[:, :, :1], "v", (1, 8, 8), 2, steps=2),
    "bytes": lambda: elbocli.DiffusionLoss()(same, PIXELS),
    "numbers from 0 to 255": lambda: elbocli.DiffusionLoss()(same, PIXELS.float()),
    "an array": lambda: elbocli.DiffusionLoss()(same, X.numpy()),
    "noise that broadcasts": lambda: elbocli.DiffusionLoss()(same, X, eps=torch.zeros(1)),
    "unknown times": lambda: elbocli.DiffusionLoss(t_sampling="random"),
    "another loss's state": lambda: elbocli.DiffusionLoss("edm").load_state_dict(elbocli.DiffusionLoss().state_dict()),
    "a function as a weighting": lambda: elbocli.DiffusionLoss(lambda logsnr: logsnr * 0 + 1),
    "a weighting that overflows": lambda: elbocli.DiffusionLoss("p2:gamma=-30", logsnr_min=-40, logsnr_max=40),
    "no shape": lambda: elbocli.draw(same, "v", n=2),
    "images as the prediction": lambda: elbocli.variational_bound(same, PIXELS),
    "no prediction": lambda: elbocli.draw(same, shape=(1, 8, 8), n=2),
    "guidance without labels": lambda: elbocli.draw(same, "v", (1, 8, 8), 2, guidance_scale=2.0),
    "an odd number of draws": lambda: elbocli.variational_bound(same, "v", PIXELS, draws=3),
    "floats as pixels": lambda: elbocli.variational_bound(same, "v", X, draws=2),
    "pixels of two channels": lambda: elbocli.normalised(torch.zeros(4, 2, 8, 8, dtype=torch.uint8)),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_refused_in_words_of_python(mistake):
    with pytest.raises(UsageError) as caught:
        REFUSED[mistake]()
    assert "--" not in str(caught.value)


def test_a_range_is_that_of_the_loss_or_of_a_schedule_unless_given():
    cosine = elbocli.schedule("cosine", -9, 9)
    loss = elbocli.DiffusionLoss("sigmoid", cosine, "eps", logsnr_max=8)
    assert (loss.logsnr_min, loss.logsnr_max) == (-9, 8) == (loss.schedule.logsnr_min, loss.schedule.logsnr_max)
    shape = (1, 8, 8)
    given = {"logsnr_min": -9.0, "logsnr_max": 8.0}
    drawn = elbocli.draw(same, shape=shape, n=2, steps=3, loss=loss)
    assert torch.equal(drawn, elbocli.draw(same, "eps", shape, 2, steps=3, **given))
    assert not torch.equal(drawn, elbocli.draw(same, "eps", shape, 2, steps=3))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_of_pixels_is_told_by_their_shape(channels):
    pixels = PIXELS.expand(-1, channels, -1, -1)
    by_layout = [elbocli.variational_bound(same, "v", at, draws=2) for at in (pixels, pixels.permute(0, 2, 3, 1))]
    assert by_layout[0] == by_layout[1]
    assert torch.equal(elbocli.normalised(pixels), elbocli.normalised(pixels.permute(0, 2, 3, 1)))


def test_a_dataset_is_one_of_torchs(digits):
    data = elbocli.open_dataset(digits)
    rows = data.read(range(len(data)))
    both, classes = data.batch(range(3))
    assert np.array_equal(both, [data[i][0] for i in range(3)]) and classes.tolist() == [data[i][1] for i in range(3)]
    for these in (data, pickle.loads(pickle.dumps(data))):
        loaded = list(torch.utils.data.DataLoader(these, 128, num_workers=2, timeout=60))
        images, labels = (torch.cat(parts) for parts in zip(*loaded, strict=True))
        assert np.array_equal(images.permute(0, 2, 3, 1), rows) and np.array_equal(labels, data.labels)
    assert np.array_equal(data[-1][0], data[len(data) - 1][0]) and data[-1][1] == data.labels[-1]
    with pytest.raises(IndexError):
        data[len(data)]


def test_objects_are_copied_and_shown_in_short(trained, digits):
    loss = elbocli.DiffusionLoss("edm:monotone", "adaptive", "edm")
    sampler = elbocli.sampler("edm-imagenet64")
    assert pickle.loads(pickle.dumps(sampler)) == copy.deepcopy(sampler) == sampler
    results = (loss(same, X), elbocli.variational_bound(same, "v", PIXELS, draws=2))
    opened = (elbocli.open_run(trained), elbocli.open_dataset(digits))
    for one in (*opened, *results, loss, loss.weighting, loss.schedule, loss.prediction, sampler):
        assert repr(one).startswith(f"{type(one).__name__}(") and " at 0x" not in repr(one)
        assert len(repr(one).replace(str(trained), "").replace(str(digits), "")) < 120


def test_a_loss_log_is_read_as_one_of_training(tmp_path):
    loss = elbocli.DiffusionLoss("sigmoid", "cosine", "v")
    log = elbocli.LossLogWriter(tmp_path / "l.jsonl", loss.edges, dimensions=6, weighting=loss.weighting.spec)
    total = torch.zeros(3, len(loss.edges) - 1, dtype=torch.float64)
    for _ in range(3):
        loss(same, torch.randn(8, 6))
        sums = loss.take_sums()
        log.write(loss.step, loss.images, sums)
        total += sums
    found = read_losslog(tmp_path / "l.jsonl")
    assert torch.equal(found.sums, total) and (found.images, len(found.rows)) == (24, 3) and total[0].sum() == 24


@pytest.mark.parametrize(("sampler", "schedule"), [("ddpm", "cosine"), ("heun", "fm-ot")])
def test_what_it_draws_is_what_elbo_sample_draws(sampler, schedule, elbo, trained, tmp_path):
    words = ("--steps", 4, "--sampler", sampler, "--schedule", schedule)
    result = elbo("sample", trained, "-n", 6, *words, "-o", tmp_path / "s.npy")
    assert result.returncode == 0, result.stderr
    run = elbocli.open_run(trained, "cpu")
    labels = torch.arange(6)
    on = elbocli.schedule(schedule, -10, 10)
    how = {"labels": labels, "steps": 4, "sampler": sampler, "schedule": on, "device": "cpu"}
    drawn = elbocli.draw(run.network, run.prediction, (1, 8, 8), 6, **how)
    by_run = elbocli.draw(run, n=6, **{key: how[key] for key in how if key != "labels"})
    assert np.array_equal(to_levels(drawn).numpy(), np.load(tmp_path / "s.npy")) and torch.equal(by_run, drawn)
    with pytest.raises(UsageError):
        elbocli.draw(run.network, "v", (1, 8, 8), 6, labels=labels[:2])


def test_the_bound_is_that_of_elbo_bound(elbo, trained, digits):
    result = elbo("bound", trained, digits, "-n", 300, "--draws", 2, "--device", "cpu")
    expected = json.loads(result.stdout)
    data = elbocli.open_dataset(digits)
    run = elbocli.open_run(trained, "cpu")
    how = {"logsnr_min": -10, "logsnr_max": 10, "draws": 2, "population": 300, "device": "cpu"}
    images, how["schedule"] = (data.read(range(300)), torch.from_numpy(data.labels)), open_measurement(trained, None).schedule()
    found = elbocli.variational_bound(run.network, run.prediction, *images, **how)
    del how["logsnr_min"], how["logsnr_max"]
    assert (
        found
        == elbocli.variational_bound(run, None, *images, **how)
        == elbocli.variational_bound(run.network, None, *images, **how)
    )
    assert repr(found).startswith(f"Bound({found.bpd:.4g} ± {found.bpd_se:.2g} bits")
    for key in ("bpd", "bpd_se", "bpd_se_noise", "nats"):
        assert getattr(found, key) == pytest.approx(expected[key], rel=1e-5), key
    assert found.prior.nats == pytest.approx(expected["prior"]["nats"], rel=1e-9)


def test_a_network_keeps_the_range_and_prediction_of_its_run(trained, digits):
    run = elbocli.open_run(trained, "cpu")
    pixels = elbocli.open_dataset(digits).read(range(20))
    few = {"pixels": pixels, "draws": 2, "device": "cpu"}
    bound = elbocli.variational_bound(run.network, **few)
    own = elbocli.schedule("uniform", -10, 10)
    for network in (run, copy.deepcopy(run.network), pickle.loads(pickle.dumps(run.network))):
        for schedule in ("uniform", own, elbocli.schedule("uniform")):
            assert elbocli.variational_bound(network, **few, schedule=schedule) == bound
    loss = elbocli.DiffusionLoss("elbo", logsnr_min=-12, logsnr_max=12)
    wider = elbocli.variational_bound(run, **few, logsnr_min=-12, logsnr_max=12)
    assert bound != wider == elbocli.variational_bound(run.network, **few, loss=loss)
    narrow = elbocli.draw(run, n=2, sampler="ddim", steps=3, schedule=elbocli.schedule("cosine", -8, 8))
    assert torch.equal(narrow, elbocli.draw(run, n=2, sampler="ddim", steps=3, logsnr_min=-8, logsnr_max=8))
    with pytest.raises(UsageError):
        elbocli.draw(run, "eps", n=2)


def test_a_loss_log_is_read_as_arrays_by_interval_and_noise_level(trained, tmp_path):
    arrays = elbocli.read_losslog(trained)
    whole = read_losslog(trained / "losslog.jsonl")
    assert arrays.count.shape == arrays.eps_mse.shape == arrays.eps_mse_se.shape == (len(whole.rows), len(whole.edges) - 1)
    assert np.array_equal(arrays.count.sum(0), whole.sums[0]) and arrays.images[-1] == whole.images
    np.testing.assert_allclose(np.nansum(arrays.count * arrays.eps_mse, 0), whole.sums[1])
    errors = np.array([0.5, 1.0, 4.0, 2.0])
    log = elbocli.LossLogWriter(tmp_path / "l.jsonl", torch.tensor([-1.0, 0, 1]).double(), dimensions=4)
    log.write(1, 4, torch.tensor([[4.0, 1], [errors.sum(), 3], [(errors**2).sum(), 9]]).double())
    made = elbocli.read_losslog(tmp_path / "l.jsonl")
    (mean, alone) = made.eps_mse[0]
    (se, unknown) = made.eps_mse_se[0]
    assert mean == errors.mean() and alone == 3 and np.isnan(unknown)
    assert se == pytest.approx(errors.std(ddof=1) / 2)


def test_plots_draw_the_curves_on_the_given_axis(trained):
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    weighting = elbocli.weighting("edm")
    schedule = elbocli.schedule("cosine", -10, 10)
    assert weighting.plot(-5, 5, axis) is axis and schedule.plot(axis) is axis
    arrays = elbocli.read_losslog(trained)
    arrays.plot(axis)
    of_weighting, of_schedule, of_log = axis.lines
    at = torch.from_numpy(of_weighting.get_xdata())
    assert (float(at[0]), float(at[-1])) == (-5, 5) and np.array_equal(of_weighting.get_ydata(), weighting(at))
    assert np.array_equal(of_schedule.get_ydata(), schedule.density(torch.from_numpy(of_schedule.get_xdata())))
    assert np.array_equal(of_log.get_ydata(), arrays.eps_mse[-1], equal_nan=True)


def test_bars_and_tables_are_shown_in_a_notebook(trained, digits, capsys):
    elbocli.draw(same, "v", (1, 8, 8), 4, steps=2, batch_size=2)
    assert "8/8" in capsys.readouterr().err  # evaluations
    bound = elbocli.variational_bound(same, "v", PIXELS, draws=2)
    assert "6/6" in capsys.readouterr().err
    elbocli.variational_bound(same, "v", PIXELS, draws=2, progress_bar=False)
    assert capsys.readouterr().err == ""
    assert "bits per dimension" in bound._repr_html_() and "±" in bound._repr_html_()
    assert elbocli.open_run(trained).settings.weighting in elbocli.open_run(trained)._repr_html_()


# Scores


def test_scores_of_arrays_are_those_of_the_command_on_files(elbo, digits, tmp_path):
    """In either layout, with labels, and with an option of a metric."""
    pixels = Dataset(digits).read(np.arange(120))
    labels = Dataset(digits).labels[:120]
    np.savez(tmp_path / "a.npz", pixels, labels)
    line = ("--extractor", "elbo-tiny", "--metrics", "fid,kid,accuracy", "--kid-subset-size", 50)
    by_command = json.loads(elbo("eval", tmp_path / "a.npz", "--ref", digits, *line).stdout)
    how = {"metrics": "fid,kid,accuracy", "extractor": "elbo-tiny", "kid_subset_size": 50, "progress_bar": False}
    for images in (pixels, torch.from_numpy(pixels).permute(0, 3, 1, 2)):
        found = elbocli.score(images, digits, labels=labels, **how)
        assert found.json()["scores"] == by_command["scores"]
    assert found.scores["accuracy[elbo-tiny]"].interval[0] < found.scores["accuracy[elbo-tiny]"].value


@pytest.mark.parametrize(
    "wrong",
    [{"images": None}, {"images": np.zeros((4, 8, 8, 1))}, {"metrics": "fod"}, {"kid_subsets": 3}, {"kid_subset_size": 1}],
)
def test_what_score_cannot_use_is_refused(wrong):
    images = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(UsageError):
        elbocli.score(**{"images": images, "ref": images, "metrics": "kid", "extractor": "elbo-tiny", **wrong})

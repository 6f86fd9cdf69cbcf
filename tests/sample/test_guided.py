"""How a run is sampled: presets, grids, guides and clipping, and what the samples say of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda_graph
import h5py
import numpy as np
import pytest
import torch
from harness import heard
from typed_settings import typed

from elbocli.core.adaptive import bin_edges
from elbocli.core.samplers import time_grid
from elbocli.core.sampling import Guidance
from elbocli.core.schedule import parse_schedule, schedule_of_shares
from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.schedule_file import to_text
from elbocli.run import settings
from elbocli.run.open import open_run
from elbocli.runtime.device import WARM_UPS, CudaGraphs
from elbocli.sample import draw as sample
from elbocli.sample.draw import GuidedRun, open_decoder
from elbocli.train import loop
from elbocli.train.state import TrainState

CPU = torch.device("cpu")
Make = Callable[..., Path]


def drawn(run: Path, out: Path, **how: Any) -> tuple[np.ndarray, dict[str, Any], str]:
    """Images, what they say of themselves, and the last message."""
    with heard() as lines:
        sample.draw_samples(run, out, typed(**{"n": 6, "steps": 5, "sampler": "ddim", "overwrite": True, **how}))
    with h5py.File(out) as file:
        return file["images"][()], json.loads(str(file.attrs["samples"])), lines[-1]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, digits: Path, preset: Path) -> Make:
    """make(steps, **settings): a run of the digits."""

    def run(data: Path = digits, steps: int = 3, **given: Any) -> Path:
        dataset = Dataset(data, latents=True)
        path = tmp_path_factory.mktemp("drawer") / "run"
        resolved = settings.resolve({"preset": str(preset), "steps": steps, "device": "cpu", **given}, dataset)
        loop.run(dataset, path, resolved)
        return path

    return run


@pytest.fixture(scope="module")
def weak(make: Make) -> Path:
    """A run of three steps, which outputs something else than `trained`."""
    return make(prediction="edm")


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        ({"sampler": "ddpm"}, 5),
        ({"sampler": "dpmpp-2m"}, 5),
        ({"sampler": "dpmpp-2m-sde"}, 5),
        ({"sampler": "heun"}, 9),
        ({"sampler": "heun", "guidance": Guidance(2.0)}, 18),
        ({"sampler": "ddim", "guidance": Guidance(2.0, -1.0, 1.0)}, 6),
    ],
    ids=str,
)
def test_samples_say_how_often_networks_were_called(
    how: dict[str, Any], calls: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from elbocli.nn.networks.unet import UNet

    seen, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda *given: seen.append(1) or forward(*given))
    _, about, message = drawn(trained, tmp_path / "a.h5", **how)
    assert about["nfe"] == len(seen) == calls
    assert f"{calls} network evaluations" in message


def test_a_preset_brings_its_steps_grid_and_parameters_which_options_override(trained: Path, tmp_path: Path) -> None:
    _, about, _ = drawn(trained, tmp_path / "a.h5", n=1, sampler="heun:edm-imagenet64", steps=0)
    assert about["sampler"] == "heun:s_churn=40,s_min=0.05,s_max=50,s_noise=1.003"
    assert (about["steps"], about["nfe"]) == (256, 511)
    assert about["schedule"] == "edm-sample:rho=7,sigma_min=0.002,sigma_max=80"
    assert about["logsnr_min"] == pytest.approx(-2 * np.log(80))
    assert about["logsnr_max"] == pytest.approx(10)  # as the run was trained: σ = .002 would be 12.4
    _, about, _ = drawn(trained, tmp_path / "a.h5", n=1, sampler="heun:edm-imagenet64,s_churn=20", schedule="cosine")
    assert about["sampler"] == "heun:s_churn=20,s_min=0.05,s_max=50,s_noise=1.003"
    assert (about["steps"], about["nfe"], about["schedule"]) == (5, 9, "cosine")


def test_timesteps_are_walked_as_adm_does_unless_asked_otherwise(trained: Path, tmp_path: Path) -> None:
    _, about, _ = drawn(trained, tmp_path / "a.h5", schedule="t-linear")
    levels = parse_schedule("t-linear").curve.level  # type: ignore[attr-defined]  # the run was trained on -10 to 10
    assert about["spacing"] == "timesteps" and about["schedule"].startswith("t-linear:count=1000")
    assert about["logsnr_min"] == float(levels[levels >= -10][0]) and about["logsnr_max"] == float(levels[-1])
    assert drawn(trained, tmp_path / "a.h5", schedule="t-linear", spacing="even")[1]["logsnr_min"] == -10
    about = drawn(trained, tmp_path / "a.h5", schedule="t-squaredcos:count=10", spacing="ddim", steps=3)[1]
    assert about["spacing"] == "stride"
    assert drawn(trained, tmp_path / "b.h5", schedule="cosine")[1]["spacing"] == "even"


def test_the_grid_may_be_the_runs_own_schedule(trained: Path, tmp_path: Path) -> None:
    _, about, _ = drawn(trained, tmp_path / "a.h5", schedule="run")
    assert about["schedule"] == "cosine"
    default, *_ = drawn(trained, tmp_path / "b.h5", schedule="cosine")
    assert np.array_equal(drawn(trained, tmp_path / "a.h5", schedule="run")[0], default)


def test_a_run_that_adapts_lends_the_schedule_it_had_at_the_checkpoint(
    digits: Path, preset: Path, tmp_path: Path
) -> None:
    dataset, run = Dataset(digits), tmp_path / "run"
    resolved = settings.resolve({"preset": str(preset), "steps": 20, "schedule": "adaptive", "device": "cpu"}, dataset)
    loop.run(dataset, run, resolved)
    opened, state = open_run(run, CPU), TrainState(resolved, dataset)
    uniform = time_grid(state.schedule, 9)
    state.restore(opened.checkpoint)
    assert time_grid(opened.schedule(), 9) == time_grid(state.schedule, 9) != uniform
    _, about, _ = drawn(run, tmp_path / "a.h5", schedule="run")
    assert about["schedule"] == "adaptive"


def test_a_schedule_file_that_changed_since_training_is_refused(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        to_text(schedule_of_shares(bin_edges(-10, 10, 4), torch.tensor([0.1, 0.4, 0.3, 0.2]).double(), "x"))
    )
    run = make(schedule=str(file))
    assert open_run(run, CPU).schedule().base == str(file)
    file.write_text(file.read_text() + "\n")
    with pytest.raises(DataError, match=r"s\.yaml: has changed since"):
        drawn(run, tmp_path / "a.h5", schedule="run")


# Guides


def test_a_guide_changes_the_images_inside_its_interval_only(trained: Path, weak: Path, tmp_path: Path) -> None:
    plain, *_ = drawn(trained, tmp_path / "a.h5")
    outside, told, _ = drawn(trained, tmp_path / "a.h5", guide=weak, guidance=Guidance(3.0, 9.0, 9.5))
    guided, about, message = drawn(trained, tmp_path / "a.h5", guide=weak, guidance=Guidance(3.0))
    assert np.array_equal(plain, outside)
    assert not np.array_equal(plain, guided)
    assert (about["guidance"], about["guide"], about["guide_step"]) == (3.0, str(weak), 3)
    assert (told["guidance_low"], told["guidance_high"]) == (9.0, 9.5) and "guidance_low" not in about
    assert about["nfe"] == 10
    assert "10 network evaluations" in message


def test_guidance_zero_draws_what_the_guide_alone_draws(trained: Path, weak: Path, tmp_path: Path) -> None:
    """Of the same classes: with others it draws something else."""
    alone, *_ = drawn(trained, tmp_path / "a.h5")
    guided, *_ = drawn(weak, tmp_path / "a.h5", guide=trained, guidance=Guidance(0.0))
    others, *_ = drawn(trained, tmp_path / "a.h5", classes="9")
    assert np.abs(alone.astype(int) - guided).max() <= 1
    assert np.abs(alone.astype(int) - others).max() > 1


def test_a_checkpoint_or_another_average_of_the_same_run_may_guide(make: Make, tmp_path: Path) -> None:
    run = make(steps=4, save_every=2, lr=0.05, warmup=0, ema=["0.9", "0.05"])
    plain, *_ = drawn(run, tmp_path / "a.h5")
    for how in (
        {"guide": run / "checkpoints" / "step-00000002"},
        {"guide_weights": "0.05"},
        {"guide": run, "guide_weights": "0.05"},
    ):
        images, about, _ = drawn(run, tmp_path / "a.h5", guidance=Guidance(4.0), **how)
        assert not np.array_equal(plain, images)
        assert (about["guide_step"], about["guide_weights"]) in ((2, "ema-0.9"), (4, "ema-0.05"))


def test_a_run_that_can_not_guide_itself_can_be_guided(make: Make, tmp_path: Path) -> None:
    """Neither without classes, nor where no image was ever shown without its class."""
    for given in ({"conditional": False}, {"label_dropout": 0.0}):
        run, guide = make(**given), make(steps=2, **given)
        with pytest.raises(UsageError, match="only --guide can guide it"):
            drawn(run, tmp_path / "a.h5", guidance=Guidance(2.0))
        assert drawn(run, tmp_path / "a.h5", guidance=Guidance(2.0), guide=guide)[1]["nfe"] == 10


def test_a_guide_that_does_not_fit_is_refused(
    make: Make, trained: Path, weak: Path, digits_folder: Path, elbo: Callable[..., Any], tmp_path: Path
) -> None:
    assert elbo("prep", digits_folder, tmp_path / "16.h5", "--size", 16, "--channels", 1).returncode == 0
    assert elbo("prep", digits_folder, tmp_path / "rgb.h5", "--size", 8, "--channels", 3).returncode == 0
    for guide, guidance, complaint in (
        (weak, Guidance(), "does nothing at --guidance 1"),
        (make(tmp_path / "16.h5"), Guidance(2.0), "other images"),
        (make(tmp_path / "rgb.h5"), Guidance(2.0), "other images"),
        (make(logsnr_max=5.0), Guidance(2.0), "logsnr -10 to 5, .* add --guidance-interval -10 5"),
    ):
        with pytest.raises(UsageError, match=complaint):
            drawn(trained, tmp_path / "a.h5", guide=guide, guidance=guidance)
    drawn(trained, tmp_path / "a.h5", guide=make(logsnr_max=5.0), guidance=Guidance(2.0, -10.0, 5.0))


def test_a_run_without_classes_can_guide_one_with_classes_but_not_the_other_way_round(
    make: Make, trained: Path, tmp_path: Path
) -> None:
    """Classifier-free guidance by a network of its own, which is told of no class."""
    plain = make(conditional=False)
    alone = drawn(plain, tmp_path / "a.h5")[0]
    assert np.array_equal(drawn(trained, tmp_path / "a.h5", guide=plain, guidance=Guidance(0.0))[0], alone)
    assert drawn(trained, tmp_path / "a.h5", guide=plain, guidance=Guidance(2.0))[1]["nfe"] == 10
    run, guide = (open_run(path, CPU) for path in (trained, plain))
    both = GuidedRun(run, Guidance(2.0), guide).denoiser(torch.tensor([3]))
    assert both.labels is not None and both.guide is not None and both.guide.labels is None
    with pytest.raises(UsageError, match="the same classes or none"):
        drawn(plain, tmp_path / "a.h5", guide=trained, guidance=Guidance(2.0))


# Starts, rounding and clipping


def test_a_rounding_is_recorded_and_makes_levels_of_the_same_pixels(trained: Path, tmp_path: Path) -> None:
    images, about, _ = drawn(trained, tmp_path / "a.h5")
    assert about["rounding"] == "nearest"
    darker, about, _ = drawn(trained, tmp_path / "a.h5", rounding="adm")
    assert about["rounding"] == "truncate"
    below = images.astype(int) - darker
    assert set(np.unique(below)) == {0, 1} and 0.3 < below.mean() < 0.6
    same, about, _ = drawn(trained, tmp_path / "a.h5", rounding="edm")
    assert about["rounding"] == "half-up" and np.array_equal(images, same)


def test_a_start_is_recorded_and_changes_the_images_by_a_trace(trained: Path, tmp_path: Path) -> None:
    images, about, _ = drawn(trained, tmp_path / "a.h5", schedule="cosine")
    assert about["start"] == "unit"
    others, about, _ = drawn(trained, tmp_path / "a.h5", schedule="cosine", start="edm")
    assert about["start"] == "edm"
    assert not np.array_equal(images, others) and np.abs(images.astype(int) - others).max() < 20


def test_clipping_is_recorded_and_keeps_estimates_in_range(trained: Path, tmp_path: Path) -> None:
    found = {}
    for clip in ("none", "static", "dynamic:percentile=90"):
        found[clip], about, _ = drawn(trained, tmp_path / "a.h5", clip=clip, guidance=Guidance(6.0))
        assert about["clip"] == clip
    assert not np.array_equal(found["none"], found["static"])
    assert not np.array_equal(found["static"], found["dynamic:percentile=90"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_draw_the_same_and_guidance_replays_the_same_graph(
    precision: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = fake_cuda_graph.install(monkeypatch)
    run, worse = (open_run(trained, CPU, weights) for weights in ("ema", "model"))
    how, labels = typed(n=4, sampler="dpmpp-2m-sde", precision=precision), torch.tensor([3, 1, 4, 1])
    config = run.network.config
    output, shape = open_decoder(run.data, config, CPU), (config.image_size, config.image_size, config.image_channels)
    grid = time_grid(run.schedule(), 8)
    for guide, wanted in ((None, 1), (worse, 3)):
        plain = GuidedRun(run, Guidance(2.0), guide)
        hastened = plain.hastened(False, CudaGraphs())
        images = [
            sample.draw(each.denoiser(labels), range(4), shape, grid, how, CPU, output) for each in (plain, hastened)
        ]
        assert torch.equal(*images)
        # The first run's network is captured anew, by other CudaGraphs; the guide is a network of its own.
        assert len(captured) == wanted
        assert sum(graph.replays for graph in captured[-1:]) == (16 if guide is None else 8) - WARM_UPS

"""Image i is a function of the seed and i; presets, grids, guides, variances and formats, and the record that samples keep of them."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from harness import heard
from peers.dit import DiT
from peers.parts import draw as draw_network
from scipy.stats import binomtest
from torch._dynamo.utils import counters

from elbocli.core.adaptive import bin_edges
from elbocli.core.schedule import parse_schedule, schedule_of_shares
from elbocli.errors import DataError, FormatError, Interrupted, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.import_options import ImportOptions
from elbocli.files.sample_files import SamplesHeader, open_samples
from elbocli.files.schedule_file import to_text
from elbocli.networks.unet import UNet
from elbocli.runs import settings
from elbocli.runs.classes import choose_labels
from elbocli.runs.imported import import_run
from elbocli.runs.open import open_run
from elbocli.sampling import draw as sample
from elbocli.sampling.plan import Sampling
from elbocli.sampling.samplers import SAMPLERS
from elbocli.sampling.settings import SampleSettings
from elbocli.sampling.spacing import logsnr_grid
from elbocli.training import loop
from elbocli.training.state import TrainState

CPU = torch.device("cpu")
Make = Callable[..., Path]
Drawn = Callable[..., tuple[np.ndarray, dict[str, Any]]]


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    """drawn(run, **settings): int images, and what they say of themselves."""

    def draw(run: Path, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        out = tmp_path / "drawn.h5"
        sample.draw_samples(run, out, SampleSettings(**{"n": 6, "steps": 5, "sampler": "ddim", "overwrite": True, **how}))
        with h5py.File(out) as file:
            return file["images"][()].astype(int), json.loads(str(file.attrs["samples"]))

    return draw


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, digits: Path, preset: Path) -> Make:
    """make(data, steps, **settings): a run of the digits."""

    def run(data: Path = digits, steps: int = 2, **given: Any) -> Path:
        dataset = Dataset(data)
        path = tmp_path_factory.mktemp("drawer") / "run"
        resolved = settings.resolve({"preset": str(preset), "steps": steps, "device": "cpu", **given}, dataset)
        loop.run(dataset, path, resolved)
        return path

    return run


@pytest.fixture(scope="module")
def weak(make: Make) -> Path:
    """A run of three steps, which outputs something else than `trained`."""
    return make(steps=3, prediction="edm")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported run, with random weights, whose network gives a variance of each value."""
    folder = tmp_path_factory.mktemp("learned")
    torch.save(draw_network(DiT, channels=1, outputs=2, width=64, depth=1, heads=1).state_dict(), folder / "w.pt")
    import_run(folder / "w.pt", folder / "run", ImportOptions())
    return folder / "run"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_in_any_batch(sampler, trained, learned, drawn):
    run = learned if SAMPLERS[sampler].learned else trained
    whole = drawn(run, sampler=sampler)[0]
    parts = list[float]()
    for more in ({"batch_size": 4}, {"n": 9, "batch_size": 7}):
        with heard(lambda done, total, unit, *rest: parts.append(done / total) if unit == "evaluation" else None):
            pieces = drawn(run, sampler=sampler, **more)[0][:6]
        assert 0.5 < max(parts) <= 1
        assert np.abs(whole - pieces).max() <= 1 and (whole == pieces).mean() > 0.99
    assert np.abs(whole - drawn(run, sampler=sampler, seed=1)[0]).max() > 1


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        ({"sampler": "dpmpp-2m-sde"}, 5),
        ({"sampler": "heun"}, 9),
        ({"sampler": "heun", "guidance_scale": 2.0}, 18),
        ({"sampler": "ddim", "guidance_scale": 2.0, "guidance_interval": (-1.0, 1.0)}, 6),
    ],
    ids=str,
)
def test_samples_say_how_often_networks_were_called(how, calls, trained, drawn, monkeypatch):
    seen = []
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda *given: seen.append(1) or forward(*given))
    with heard() as lines:
        assert drawn(trained, **how)[1]["nfe"] == len(seen) == calls
    assert f"{calls} network evaluations" in lines[-1]


def test_classes_are_balanced_random_or_listed_and_no_word_means_two():
    def chosen(words: str, n: int, classes: int, names: Any = ()) -> list[int]:
        return choose_labels(words, n, classes, 0, names).tolist()  # type: ignore[union-attr]

    folders = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2, …: the number 2 is another class than the name 2
    assert chosen("balanced", 5, 3) == [0, 1, 2, 0, 1] and chosen("2,0", 5, 3) == [2, 0, 2, 0, 2]
    assert chosen("cat", 2, 2, ["dog", "cat"]) == [1, 1] and choose_labels("balanced", 5, 0, 0) is None
    assert chosen("0,1", 2, 12, folders) == [0, 1] and chosen("002,004", 2, 12, folders) == [2, 4]
    random = chosen("random", 4000, 4)
    assert np.bincount(random).min() > 900 and random[:10] == chosen("random", 10, 4)
    for words, names in (("-1", ()), ("x", ()), ("", ()), ("a", ["a", "b", "a"]), ("2", ["0", "2", "1"])):
        with pytest.raises(UsageError) as error:
            chosen(words, 5, 3, names)
        hinted = {chosen(part.split()[0], 1, 3, names)[0] for part in str(error.value).split("write ")[1:]}
        assert hinted == {k for k in range(3) if words in (*names[k : k + 1], str(k))}


def test_classes_by_frequency_are_drawn_image_by_image():
    counts = np.array([410, 0, 90])
    many = choose_labels("data", 5000, 3, 7, counts=counts)
    assert np.array_equal(many[:10], choose_labels("data", 10, 3, 7, counts=counts))
    assert binomtest(int((many == 2).sum()), 5000, 0.18).pvalue > 1e-3 and not (many == 1).any()
    assert not np.array_equal(many, choose_labels("data", 5000, 3, 8, counts=counts))


def test_a_file_of_labels_is_a_list_however_long(tmp_path):
    names = ["ant", "bee", "7"]
    listed = [1, 1, 0] * 100
    (tmp_path / "a.txt").write_text("\n".join(map(str, listed)))
    (tmp_path / "named.txt").write_text("bee\nbee\n\nant\n")
    for words in (",".join(map(str, listed)), *(str(tmp_path / name) for name in ("a.txt", "named.txt"))):
        assert choose_labels(words, 1000, 3, 0, names).tolist() == np.resize(listed, 1000).tolist()


@pytest.mark.parametrize("content", [b"1\n\n3", b"", b"\xff\0"])
def test_an_unusable_file_of_labels_is_named(content, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path}: [^\n]*$"):
        choose_labels(str(path), 5, 3, 0)


def test_classes_of_unbalanced_data_are_drawn_with_their_frequencies(make, skewed, drawn, tmp_path):
    data = Path(shutil.copy(skewed, tmp_path / "skewed.h5"))
    run = make(data=data)
    counts = np.bincount(Dataset(data).labels)
    config = (run / "config.yaml").read_text()
    with heard() as lines:
        images, about = drawn(run, n=40)
    assert about["classes"] == "data" and any("--classes data" in line and "6 to 123" in line for line in lines)
    labels = choose_labels("data", 40, 10, 0, counts=counts)
    assert Dataset(tmp_path / "drawn.h5").labels.tolist() == labels.tolist()
    few, _ = drawn(run, n=7, batch_size=3)
    assert np.abs(few - images[:7]).max() <= 1
    (run / "config.yaml").write_text(re.sub(r"  class_counts:\n(  - \d+\n)+", "", config))
    assert drawn(run)[1]["classes"] == "balanced"
    with pytest.raises(UsageError):
        drawn(run, classes="data")
    (run / "config.yaml").write_text(config.replace("- 123\n", f"- {10**15}\n"))
    with pytest.raises(FormatError):
        drawn(run)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.png"])
def test_a_file_reserves_no_more_than_twice_its_images(name, tmp_path):
    shape = (4000, 8, 8, 1)
    with open_samples(tmp_path / name, SamplesHeader(shape, None, np.arange(4000), [], {})):
        reserved = (tmp_path / f"{name}.partial").stat().st_size
    assert 4000 * 64 <= reserved <= 2 * 4000 * 64 + 16384


def test_interrupted_while_pngs_are_made_nothing_is_drawn_again(trained, tmp_path, elbo, monkeypatch):
    def kill(done: int, total: int, unit: str, *rest: object) -> None:
        if unit == "png" and done == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with heard(kill), pytest.raises(Interrupted, match="SIGTERM: 12 of 12"):
        sample.draw_samples(trained, tmp_path / "x", SampleSettings(n=12, steps=2))
    assert sorted(os.listdir(tmp_path)) == ["x.partial", "x.partial.json"]
    other = ("--steps", 3, "--seed", 1, "--classes", 3)
    refused = elbo("sample", trained, "-n", 12, *other, "-o", "x", cwd=tmp_path)
    assert refused.returncode == 2
    assert all(word in refused.stderr for word in (b"x.partial", b"--overwrite", b"classes", b"seed", b"steps"))
    monkeypatch.setattr(Sampling, "draw", None)
    sample.draw_samples(trained, tmp_path / "x", SampleSettings(n=12, steps=2))
    assert len(os.listdir(tmp_path / "x")) == 12 and os.listdir(tmp_path) == ["x"]


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0, "precision": "bf16"}], ids=["plain", "guided"])
def test_a_compiled_network_is_compiled_once_whatever_is_left_for_the_last_batch(options, trained, drawn, monkeypatch):
    sizes: list[int] = []

    def backend(graph: Any, inputs: list[torch.Tensor]) -> Any:
        sizes.append(next(len(value) for value in inputs if value.ndim == 4 and value.shape[1:] == (1, 8, 8)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    counters.clear()
    plain, compiled = (drawn(trained, n=17, batch_size=5, compile=how, **options)[0] for how in ("off", "on"))
    assert sizes == [5] and not counters["graph_break"] and np.abs(plain - compiled).max() <= 1


# Schedules


def test_a_sampler_brings_its_steps_grid_and_parameters(trained, drawn, monkeypatch):
    monkeypatch.setattr(UNet, "forward", lambda self, z, *rest: z)  # 49 times
    about = drawn(trained, n=1, sampler="edm-imagenet64", steps=0)[1]
    assert about["sampler"] == "heun:s_churn=40,s_min=0.05,s_max=50,s_noise=1.003,space=edm,least=0,noise_scale=1"
    assert (about["steps"], about["nfe"]) == (25, 49)
    assert about["schedule"] == "edm-sample:rho=7,sigma_min=0.002,sigma_max=80"
    # As the run was trained: σ = 0.002 would be 12.4.
    assert (about["logsnr_min"], about["logsnr_max"]) == pytest.approx((-2 * np.log(80), 10))


def test_a_sampler_of_an_sde_brings_its_spacing_unless_another_is_given(trained, drawn, monkeypatch):
    monkeypatch.setattr(UNet, "forward", lambda self, z, *rest: z)  # 250 times
    about = drawn(trained, n=1, sampler="sit-sde", steps=0)[1]
    assert about["sampler"] == "euler-maruyama:diffusion=sigma,norm=1,last_step=mean"
    assert (about["nfe"], about["schedule"], about["spacing"]) == (250, "fm-ot", "sit:last=0.04")
    assert (about["logsnr_min"], about["logsnr_max"]) == pytest.approx((-10, 2 * np.log(24)))
    assert drawn(trained, n=1, sampler="sit-sde", spacing="even")[1]["logsnr_max"] == 10


def test_heun_says_in_which_space_it_stepped(trained, drawn, tmp_path):
    flow = tmp_path / "scheduler_config.json"
    flow.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    images = {}
    for schedule, space in {"fm-ot": "path", str(flow): "path", "edm-sample": "edm", "run": "edm"}.items():
        images[schedule], about = drawn(trained, sampler="heun", schedule=schedule)
        assert f",space={space}," in about["sampler"]
    path, edm = (drawn(trained, sampler=f"heun:space={space}", schedule="fm-ot")[0] for space in ("path", "edm"))
    assert np.array_equal(images["fm-ot"], path) and not np.array_equal(path, edm)


def test_timesteps_are_walked_as_adm_does_unless_asked_otherwise(trained, drawn):
    about = drawn(trained, schedule="t-linear")[1]
    levels = parse_schedule("t-linear").curve.level  # type: ignore[attr-defined]  # the run was trained on -10 to 10
    assert about["spacing"] == "timesteps" and about["schedule"].startswith("t-linear:count=1000")
    assert about["logsnr_min"] == float(levels[levels >= -10][0]) and about["logsnr_max"] == float(levels[-1])
    assert drawn(trained, schedule="t-linear", spacing="even")[1]["logsnr_min"] == -10
    assert drawn(trained, schedule="cosine")[1]["spacing"] == "even"


def test_the_grid_may_be_the_runs_own_schedule(trained, digits, preset, make, drawn, tmp_path):
    """That of a run that adapts is the one that it had at the checkpoint."""
    own, about = drawn(trained, schedule="run")
    assert about["schedule"] == "cosine" and np.array_equal(own, drawn(trained, schedule="cosine")[0])
    options = {"preset": str(preset), "steps": 20, "device": "cpu", "schedule": "adaptive", "log_every": 10}
    run = make(**options)
    state = TrainState(settings.resolve(options, Dataset(digits)), Dataset(digits))
    uniform = logsnr_grid(state.objective.schedule, 9)
    state.restore(open_run(run, CPU).checkpoint)
    assert logsnr_grid(open_run(run, CPU).schedule(), 9) == logsnr_grid(state.objective.schedule, 9) != uniform
    assert drawn(run, schedule="run")[1]["schedule"] == "adaptive"
    file = tmp_path / "s.yaml"
    shares = torch.tensor([0.1, 0.4, 0.3, 0.2]).double()
    file.write_text(to_text(schedule_of_shares(bin_edges(-10, 10, 4), shares, "x")))
    run = make(schedule=str(file))
    assert drawn(run, schedule="run")[1]["schedule"] == str(file)
    file.write_text(file.read_text() + "\n")
    with pytest.raises(DataError):
        drawn(run, schedule="run")


# Guides


def test_guidance_acts_inside_its_interval_alone(trained, weak, drawn):
    plain = drawn(trained)[0]
    for guide in (None, weak):
        outside, told = drawn(trained, guide=guide, guidance_scale=3.0, guidance_interval=(20.0, 30.0))
        guided, about = drawn(trained, guide=guide, guidance_scale=3.0)
        assert np.array_equal(plain, outside) and not np.array_equal(plain, guided)
        assert (told["guidance_low"], told["guidance_high"], about["nfe"]) == (20.0, 30.0, 10)
        assert (about["guidance"], "guidance_low" in about) == (3.0, False)
    assert (about["guide"], about["guide_step"]) == (str(weak), 3)


def test_guidance_zero_draws_what_the_guide_alone_draws(trained, weak, make, drawn):
    """A guide without classes is told none; one with classes can't guide a network without."""
    plain = make(conditional=False)
    for run, guide in ((weak, trained), (trained, plain)):
        assert np.abs(drawn(run, guide=guide, guidance_scale=0.0)[0] - drawn(guide)[0]).max() <= 1
    with pytest.raises(UsageError):
        drawn(plain, guide=trained, guidance_scale=2.0)


def test_a_checkpoint_or_another_average_of_the_same_run_may_guide(make, drawn):
    run = make(steps=4, save_every=2, lr=0.05, warmup_steps=0, ema=["0.9", "0.05"])
    plain = drawn(run)[0]
    for how, guide in (
        ({"guide": run / "checkpoints" / "step-00000002"}, (2, "ema-0.9")),
        ({"guide_weights": "0.05"}, (4, "ema-0.05")),
    ):
        images, about = drawn(run, guidance_scale=4.0, **how)
        assert not np.array_equal(plain, images)
        assert (about["guide_step"], about["guide_weights"]) == guide


@pytest.mark.parametrize("given", [{"conditional": False}, {"label_dropout": 0.0}])
def test_a_run_that_can_not_guide_itself_can_be_guided(given, make, drawn):
    """Neither without classes, nor where no image was ever shown without its class."""
    run = make(**given)
    guide = make(steps=1, **given)
    with pytest.raises(UsageError):
        drawn(run, guidance_scale=2.0)
    assert drawn(run, guidance_scale=2.0, guide=guide)[1]["nfe"] == 10


def test_a_guide_of_other_images_or_levels_is_refused(make, trained, digits_folder, elbo, drawn, tmp_path):
    assert elbo("prep", digits_folder, tmp_path / "16.h5", "--size", 16, "--channels", 1).returncode == 0
    narrow = make(logsnr_max=5.0)
    for guide, word in ((make(tmp_path / "16.h5"), "other images"), (narrow, "guidance_interval -10 5")):
        with pytest.raises(UsageError, match=word):
            drawn(trained, guide=guide, guidance_scale=2.0)
    drawn(trained, guide=narrow, guidance_scale=2.0, guidance_interval=(-10.0, 5.0))


# Starts, rounding, clipping, variances


def test_starts_roundings_and_clips_are_recorded_and_do_what_they_say(trained, drawn):
    images, about = drawn(trained, guidance_scale=6.0)
    assert (about["rounding"], about["start"], about["threshold"]) == ("nearest", "unit", "none")
    found = {}
    for text in ("rounding truncate", "rounding half-up", "threshold static", "threshold dynamic"):
        key, spec = text.split()
        found[spec], about = drawn(trained, guidance_scale=6.0, **{key: spec})
        assert about[key].startswith(spec) and np.array_equal(images, found[spec]) == (spec == "half-up")
    below = images - found["truncate"]
    assert set(np.unique(below)) == {0, 1} and 0.2 < below.mean() < 0.6
    assert not np.array_equal(found["static"], found["dynamic"])
    (unit, _), (edm, about) = (drawn(trained, schedule="cosine", start=start) for start in ("unit", "edm"))
    assert about["start"] == "edm" and 0 < np.abs(unit - edm).max() < 30


def test_a_learned_variance_is_that_of_each_value_and_no_constant(learned, trained, elbo, drawn, tmp_path):
    # Random weights leave the range of pixels.
    how = {"sampler": "ddpm-learned", "schedule": "run", "threshold": "dynamic"}
    images, about = drawn(learned, **how)
    assert about["spacing"] == "timesteps" and about["nfe"] == 5
    for gamma in (0, 0.5, 1):
        assert np.abs(images - drawn(learned, **{**how, "sampler": f"ddpm:gamma={gamma}"})[0]).max() > 1
    with h5py.File(tmp_path / "drawn.h5") as file:
        assert file["class_names"].asstr()[()].tolist() == [str(k) for k in range(10)]
    about = drawn(learned, **how, guidance_scale=2.0, guidance_channels=1)[1]
    assert about["nfe"] == 10 and about["guidance_channels"] == 1
    with pytest.raises(UsageError):
        drawn(learned, **how, guidance_scale=2.0, guidance_channels=2)
    refused = elbo("sample", trained, "--sampler", "ddpm-learned", "--schedule", "run", "-o", tmp_path / "b.npy")
    assert refused.returncode == 2 and b"variance" in refused.stderr and not (tmp_path / "b.npy").exists()

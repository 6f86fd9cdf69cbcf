"""What options, preset and dataset make of a run."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from msgspec.structs import replace

from elbocli.core.prediction import resolution_shift
from elbocli.core.schedule import schedule_of_shares
from elbocli.core.streams import T_SAMPLINGS
from elbocli.core.training import PRECISIONS
from elbocli.errors import FormatError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.schedule_file import resolve_weighting, to_text
from elbocli.nn.networks import build, config_of, declaration_of
from elbocli.nn.networks.unet import Attention
from elbocli.nn.presets import FOLDER, NAMES, load_preset
from elbocli.run.settings import difference, preset_data, resolve, run_settings
from elbocli.run.train_settings import SETTINGS
from elbocli.runtime import device
from elbocli.train.state import TrainState

NETWORK = "network: {channels: 8, levels: [1, 2], blocks: 1, attention: [4]}\n"
UVIT = "network: {family: uvit, channels: 8, levels: [1, 2], blocks: 1, depth: 1, heads: 2, embedding: 8, patching: dwt-1}\n"


@pytest.fixture
def resolved(tmp_path: Path, digits: Path):
    """resolved(train section, network, **options), for digits of 8 pixels."""

    def make(train: str, network: str = NETWORK, **options: Any):
        path = tmp_path / "preset.yaml"
        path.write_text(f"{network}train: {{{train}}}\n")
        return resolve({"preset": str(path), "device": "cpu", **options}, Dataset(digits))

    return make


def shift_of(resolved) -> float:
    return resolve_weighting(resolved.settings.weighting).shift


@pytest.mark.parametrize(("said", "shift"), [("auto", resolution_shift(8)), ("-2", -2.0), ("0", 0.0)])
def test_a_preset_may_shift_its_weighting(resolved, said, shift):
    assert shift_of(resolved(f"weighting: edm-monotonic, shift: {said}")) == pytest.approx(shift)
    assert shift_of(resolved(f"shift: {said}")) == pytest.approx(shift)


def test_a_shift_given_is_taken_instead_of_the_presets(resolved):
    assert shift_of(resolved("weighting: edm-monotonic, shift: auto", shift=0.0)) == 0
    assert shift_of(resolved("shift: -2", shift="auto")) == pytest.approx(resolution_shift(8))


def test_a_weighting_given_is_not_shifted_by_the_preset_and_that_is_said(resolved):
    found = resolved("weighting: edm-monotonic, shift: auto", weighting="sigmoid:bias=1")
    assert found.settings.weighting == "sigmoid:bias=1"
    assert shift_of(resolved("shift: -2", weighting="sigmoid", shift="auto")) == pytest.approx(resolution_shift(8))


def test_a_runs_own_settings_give_the_same_run_again(resolved):
    first = resolved("weighting: edm-monotonic, shift: auto, schedule: interpolated")
    again = resolved(
        "weighting: edm-monotonic, shift: auto", weighting=first.settings.weighting, schedule=first.settings.schedule
    )
    assert difference(first.config(), again.config()) == []


@pytest.mark.parametrize(
    "said",
    [
        "shift: much",
        "shift: [1]",
        "bias: 2",
        "shift: nan",
        "lr: fast",
        "steps: 1.5",
        "device: cpu",
        "preset: digits",
        "precision: fp8",
        "t_sampling: even",
        "parallel: both",
        "clip: -1.0",
        "clip: .nan",
        "weight_decay: -1.0",
        "warmup: -1",
        "seed: -1",
        "preview_every: -1",
        "snapshot_every: -1",
        "label_dropout: 5.0",
        "steps: 0",
        "val_split: -1",
    ],
)
def test_what_a_preset_may_not_say_is_refused(resolved, said):
    with pytest.raises((FormatError, UsageError)):
        resolved(said)


def test_the_images_size_is_told_to_what_asks_for_it(resolved):
    found = resolved("schedule: interpolated, weighting: v-mse@interpolated")
    assert found.settings.schedule == "interpolated:low=32,high=256,size=8"
    assert found.settings.weighting == "v-mse@interpolated:low=32,high=256,size=8"
    assert resolved("schedule: 'interpolated:size=64'").settings.schedule.endswith("size=64")
    assert resolved("", schedule="interpolated:low=16").settings.schedule == "interpolated:low=16,high=256,size=8"


def test_the_optimizer_has_the_betas_and_epsilon_asked_for(resolved, digits):
    for options, wanted in (({}, (0.999, 1e-8)), ({"beta2": 0.99, "adam_eps": 1e-12}, (0.99, 1e-12))):
        group = TrainState(resolved("batch: 4", **options), Dataset(digits)).optimizer.param_groups[0]
        assert (group["betas"], group["eps"]) == ((0.9, wanted[0]), wanted[1])


@pytest.mark.parametrize("options", [{"beta2": 1.0}, {"beta2": -0.1}, {"adam_eps": 0.0}])
def test_betas_and_epsilons_that_make_no_optimizer_are_refused(resolved, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        resolved("", **options)


def test_any_family_is_fitted_to_the_dataset_and_written_down(resolved):
    for network, family in ((NETWORK, "unet"), (UVIT, "uvit")):
        found = resolved("", network, **{"network.dropout": 0.25})
        assert (declaration_of(found.network).name, found.network.image_size, found.network.image_channels) == (
            family,
            8,
            1,
        )
        assert (found.network.num_classes, found.network.dropout) == (10, 0.25)
        assert config_of(found.config().network, "here") == found.network
    assert resolved("", UVIT, conditional=False).network.num_classes == 0


@pytest.mark.parametrize(("gb", "name"), [(80, "imagenet64"), (12, "imagenet64"), (8, "ffhq64"), (2, "small64")])
def test_the_preset_fits_the_card(gb: int, name: str, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset(digits)
    monkeypatch.setattr(Dataset, "image_size", property(lambda self: 64))
    monkeypatch.setattr(Dataset, "__len__", lambda self: 10**6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda which: SimpleNamespace(total_memory=gb * 10**9))
    found = resolve({"device": "cuda"}, data)
    assert found.settings.preset == name
    assert resolve({"device": "cpu"}, data).settings.preset == "small64"


@pytest.mark.parametrize(
    ("preset", "size"), [("cifar", 20), ("cifar", 28), ("cifar", 40), ("digits", 6), ("digits", 16), ("small64", 56)]
)
def test_attention_stays_as_deep_in_a_network_for_other_sizes(preset, size, digits, monkeypatch):
    """No size of the preset's is left without the attention that it has at the size it was made for."""
    data = Dataset(digits)
    monkeypatch.setattr(Dataset, "image_size", property(lambda self: size))
    found = resolve({"preset": preset}, data).network
    made_for = load_preset(preset)
    own = config_of(
        {**made_for.network, "image_size": made_for.data.image_size, "image_channels": 1, "num_classes": 10},
        "",
    )
    count = [sum(isinstance(part, Attention) for part in build(config).modules()) for config in (found, own)]
    assert count[0] == count[1] > 1


@pytest.mark.parametrize(
    "said", [{"weighting": 3}, {"logsnr_min": "low"}, {"prediction": None}, {"ema": None}, {"ema": []}]
)
def test_a_runs_settings_of_another_kind_are_named_with_their_file(said):
    with pytest.raises(FormatError, match=rf"^run/config\.yaml: .*{next(iter(said))}"):
        run_settings({"lr": 1e-3, **said}, Path("run/config.yaml"))


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.says("stored", True)])
def test_a_setting_may_change_when_a_run_goes_on_only_if_it_is_declared_free(resolved, name):
    now = resolved("").config()
    before = replace(now, settings={**now.settings, name: "another"})
    lines = difference(before, now)
    assert bool(lines) != SETTINGS[name].says("free", False)
    assert all(line.startswith(f"--{name.replace('_', '-')}: the run has another, asked for ") for line in lines)


def test_what_refines_other_settings_is_in_them_and_not_beside_them(resolved):
    found = resolved("", bias=3.0, shift=1.0, monotone=True, conditional=False, **{"network.dropout": 0.25})
    assert set(found.config().settings) == {name for name, setting in SETTINGS.items() if setting.says("stored", True)}
    assert found.settings.weighting == "sigmoid:bias=3,shift=1,monotone"
    assert (found.network.dropout, found.network.num_classes) == (0.25, 0)
    assert found.weighting.spec == found.settings.weighting


def test_an_earlier_version_had_networks_of_fewer_keys_and_they_are_the_same_networks(resolved):
    before = resolved("").config()
    network = config_of(before.network, "here")
    for key in ("family", "code", "heads", "head_width", "groups", "norm_eps", "embedding", "variance"):
        del before.network[key]
    assert config_of(before.network, "here") == network
    assert difference(before, resolved("").config()) == []
    now = resolved("", network=NETWORK.replace("]}", "], code: 't:linear'}"))
    assert difference(before, now.config()) == [
        "network code: the run has logsnr:factor=0.5, asked for t-linear:count=1000,start=0.0001,end=0.02"
    ]


def test_an_earlier_version_decayed_nothing(resolved):
    """Its runs don't say so, and go on."""
    before, now = resolved("").config(), resolved("").config()
    del before.settings["lr_decay"]
    assert difference(before, now) == []
    assert difference(before, resolved("", lr_decay="cosine").config()) == [
        "--lr-decay: the run has constant, asked for cosine:final=0"
    ]


def test_a_decay_is_checked_and_written_in_full(resolved):
    assert resolved("lr_decay: rsqrt").settings.lr_decay == "rsqrt:ref=70000"
    for spec in ("steep", "cosine:final=2", "rsqrt:ref=0", "linear:start=1"):
        with pytest.raises(UsageError):
            resolved("", lr_decay=spec)


def test_choices_are_what_the_machine_and_the_streams_know():
    assert get_args(SETTINGS["precision"].kind) == ("auto", *device.PRECISIONS)
    assert tuple(device.PRECISIONS) == PRECISIONS
    assert get_args(SETTINGS["t_sampling"].kind) == T_SAMPLINGS


def test_files_that_settings_name_are_read_once(resolved, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(to_text(schedule_of_shares(torch.linspace(-9, 9, 5, dtype=torch.float64), torch.ones(4), "")))
    found = resolved("", schedule=str(path), weighting=f"schedule:{path}")
    path.unlink()
    assert found.schedule.logsnr_min == found.settings.logsnr_min == -9
    assert found.weighting.support == (-9, 9)


@pytest.mark.parametrize("preset", ["latents256", "latents512"])
def test_a_preset_for_latents_is_refused_on_pixels(digits, preset):
    with pytest.raises(
        UsageError, match=f"--preset {preset} is for latents, and .* holds pixels; .*'elbo prep --latents'"
    ):
        resolve({"preset": preset}, Dataset(digits))


def test_a_network_that_is_none_names_the_preset(resolved):
    with pytest.raises(FormatError, match=r"preset\.yaml: no network family is called 'gan'.*unet.*uvit"):
        resolved("", "network: {family: gan}\n")
    with pytest.raises(FormatError, match=r"preset\.yaml: .*attention"):
        resolved("", "network: {family: uvit, attention: [8]}\n")


@pytest.mark.parametrize(
    "said",
    [
        *({"logsnr_min": "low"}, {"weighting": 3}, {"schedule": None}, {"ema": None}, {"lr": math.nan}, {"nope": 1}),
        *({"keep": 0}, {"precision": "fp8"}, {"floor": 0.0}),
    ],
)
def test_a_runs_config_with_a_setting_that_is_none_is_refused_by_name(said):
    with pytest.raises(FormatError, match=f"run/config.yaml: .*{next(iter(said))}"):
        run_settings(said, Path("run/config.yaml"))
    assert run_settings({"lr": 1, "ema": ["0.99"]}, Path("config.yaml")).ema == ("0.99",)


def test_precision_is_resolved_by_device_and_preset_unless_it_is_given(resolved):
    found = lambda train="", **options: resolved(train, **options).config().settings["precision"]  # noqa: E731
    assert found() == found(precision="auto") == found(device="auto") == "fp32"
    assert found(device="cuda") == "tf32"
    assert found(network=f"about: {{gpu: true}}\n{NETWORK}", device="cuda") == "bf16"
    assert found(network=f"about: {{gpu: true}}\n{NETWORK}") == "fp32"
    assert found("precision: fp16", device="cuda") == "fp16" and found("precision: fp16", precision="tf32") == "tf32"
    assert found("precision: fp16", precision="auto", device="cuda") == "tf32"


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_for_a_gpu_trains_in_bf16_there_and_no_other(name):
    about = (FOLDER / f"{name}.yaml").read_text().partition("data:")[0]
    planned = preset_data(name)
    for device_name, wanted in (("cuda", "tf32" if "CPU" in about else "bf16"), ("cpu", "fp32")):
        assert resolve({"preset": name, "device": device_name}, planned).settings.precision == wanted


def test_a_preset_says_truly_or_not_that_it_is_for_a_gpu(resolved):
    with pytest.raises(FormatError, match=r"preset\.yaml: .*gpu"):
        resolved("", f"about: {{gpu: maybe}}\n{NETWORK}")


def test_a_run_goes_on_with_and_without_tf32_but_with_no_other_precision(resolved):
    runs = {name: resolved("", precision=name).config() for name in PRECISIONS}
    for before, now in itertools.product(runs, runs):
        lines = difference(runs[before], runs[now])
        assert bool(lines) == (before != now and {before, now} != {"fp32", "tf32"}), (before, now)

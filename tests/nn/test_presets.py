"""Presets are files that a command can use as they are."""

import math

import msgspec
import pytest
import torch

import elbocli.nn.presets as home
from elbocli.core.prediction import Prediction
from elbocli.core.training import parse_average
from elbocli.errors import FormatError, UsageError
from elbocli.files.schedule_file import resolve_schedule
from elbocli.nn.networks import build, config_of, count_parameters
from elbocli.nn.presets import FOLDER, NAMES, MadeFor, Preset, choose_preset, load_preset
from elbocli.run.train_settings import ADAPTIVE


def test_every_file_is_a_preset_and_numbers_count_as_numbers():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(NAMES)
    sizes = [name for name in NAMES if name.startswith("imagenet")]
    assert sizes == ["imagenet64", "imagenet128", "imagenet256", "imagenet512"]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_its_sections_and_numbers_that_are_numbers(name):
    preset = load_preset(name)
    assert preset.about and preset.data and preset.network
    train = preset.train
    for key in (
        "lr",
        "clip",
        "label_dropout",
        "logsnr_min",
        "logsnr_max",
        "steps",
        "batch",
        "warmup",
        "save_every",
    ):
        assert isinstance(train[key], int | float), key
    averages = train["ema"] if isinstance(train["ema"], list) else [train["ema"]]
    assert all(parse_average(str(each)).beta for each in averages)


@pytest.mark.parametrize("name", NAMES)
def test_a_presets_schedule_and_prediction_exist(name):
    train = load_preset(name).train
    if train["schedule"] != ADAPTIVE:
        schedule = resolve_schedule(train["schedule"], train["logsnr_min"], train["logsnr_max"])
        assert (schedule.logsnr_min, schedule.logsnr_max) == (train["logsnr_min"], train["logsnr_max"])
    assert Prediction(train["prediction"]).spec == train["prediction"]


def test_imagenet64_has_edms_settings():
    preset = load_preset("imagenet64")
    assert preset.network == {
        "channels": 192,
        "levels": [1, 2, 3, 4],
        "blocks": 3,
        "attention": [32, 16, 8],
        "dropout": 0.1,
    }
    assert (preset.train["batch"], preset.train["lr"]) == (4096, 1e-4)
    assert preset.train["warmup"] * 4096 == pytest.approx(10e6, rel=0.03)
    assert preset.train["steps"] * 4096 == pytest.approx(2500e6, rel=0.03)


def test_latents512_edm2_has_the_papers_settings_of_xs():
    preset = load_preset("latents512-edm2")
    train, network = preset.train, preset.network
    assert (network["family"], network["channels"], network["levels"], network["blocks"], network["attention"]) == (
        "edm2",
        128,
        [1, 2, 3, 4],
        3,
        [16, 8],
    )
    assert (train["batch"], train["lr"], train["lr_decay"], train["beta2"], train["clip"]) == (
        2048,
        0.012,
        "rsqrt:ref=70000",
        0.99,
        0,
    )
    assert train["warmup"] * 2048 == pytest.approx(10e6, rel=1e-3) and train["steps"] * 2048 == 2048 << 20
    assert [math.exp(-train[key] / 2) for key in ("logsnr_max", "logsnr_min")] == pytest.approx([0.002, 80], rel=1e-4)
    assert preset.about.images is None and preset.data.kind


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_builds_for_what_it_was_made_for_and_its_range(name):
    preset = load_preset(name)
    about, data = preset.about, preset.data
    low, high = about.pixels
    assert low <= data.image_size <= high
    assert data.images >= (about.images or 0)
    assert about.kind == data.kind
    fits = {"image_channels": data.channels, "num_classes": data.classes}
    for size in {low + (-low) % 32 if high > 64 else low + (-low) % 8, data.image_size, high}:
        config = config_of({**preset.network, **fits, "image_size": size}, name)
        with torch.device("meta"):
            z = torch.empty(2, data.channels, size, size)
            assert build(config)(z, torch.empty(2), torch.empty(2, dtype=torch.long)).shape == z.shape


def test_a_file_of_presets_says_what_it_was_made_for_wholly_or_not_at_all(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "network: {}\ntrain: {}\ndata: {image_size: 8, channels: 4, classes: 1, images: 9, kind: latents}\n"
    )
    assert load_preset(str(path)).data == MadeFor(8, 4, 1, 9, "latents")
    for bad in (
        "{}",
        "{image_size: 8, channels: 1, classes: 1}",
        "{image_size: 8, channels: 1, classes: 0, images: 5}",
        "{image_size: 8, channels: 1, classes: 1.5, images: 5}",
        "{image_size: 8, channels: true, classes: 1, images: 5}",
        "{image_size: 8, channels: 1, classes: 1, images: 5, kind: sounds}",
        "{image_size: 8, channels: 1, classes: 1, images: 5, colour: 3}",
        "8",
    ):
        path.write_text(f"network: {{}}\ntrain: {{}}\ndata: {bad}\n")
        with pytest.raises(FormatError, match=r"mine\.yaml: .*data"):
            load_preset(str(path))


@pytest.mark.parametrize("size", [128, 256, 512])
def test_large_images_have_the_papers_settings(size):
    preset = load_preset(f"imagenet{size}")
    train, network = preset.train, preset.network
    assert (train["weighting"], train["shift"], train["schedule"], train["prediction"]) == (
        "edm-monotonic",
        "auto",
        "adaptive",
        "v",
    )
    assert (train["steps"], train["batch"], train["lr"], train["warmup"], train["clip"], train["ema"]) == (
        700_000,
        1024,
        1e-4,
        10_000,
        1.0,
        0.9999,
    )
    assert (train["beta2"], train["adam_eps"]) == (0.99, 1e-12)
    assert (network["family"], network["dropout"]) == ("uvit", 0.2)
    assert network["patching"] == {128: "none", 256: "dwt-1", 512: "dwt-2"}[size]


@pytest.mark.parametrize(
    ("size", "images", "latents", "cpu", "gpu"),
    [
        (8, 100, False, "digits", "digits"),
        (8, 60_000, False, "digits", "cifar"),
        (16, 300, False, "digits", "digits"),
        (28, 60_000, False, "small32", "cifar"),
        (32, 300, False, "small32", "small32"),
        (48, 60_000, False, "small64", "ffhq64"),
        (64, 1000, False, "small64", "small64"),
        (64, 1_281_167, False, "small64", "imagenet64"),
        (32, 1_281_167, True, "small32", "latents256"),
        (64, 1_281_167, True, "small64", "latents512"),
        (64, 50_000, True, "small64", "latents512"),
        (32, 1000, True, "small32", "small32"),
        (8, 10**6, True, "digits", "cifar"),
    ],
)
def test_a_preset_is_chosen_by_size_and_count_and_kind_and_device(size, images, latents, cpu, gpu):
    assert choose_preset(size, images, latents) == cpu
    assert choose_preset(size, images, latents, gpu=True) == gpu


@pytest.mark.parametrize("size", [128, 256, 512])
def test_large_images_need_a_gpu(size):
    assert choose_preset(size, 1_281_167, gpu=True) == f"imagenet{size}"
    with pytest.raises(UsageError, match="on a CPU"):
        choose_preset(size, 1_281_167)


def test_a_card_that_is_too_small_gets_the_next_smaller_network():
    for most, name in ((10**9, "imagenet64"), (10**8, "ffhq64"), (10**7, "small64")):
        found = choose_preset(64, 10**6, gpu=True, fits=lambda name, most=most: parameters(name) < most)
        assert found == name


def parameters(name: str) -> int:
    fits = {"image_size": 64, "image_channels": 3, "num_classes": 0}
    with torch.device("meta"):
        return count_parameters(build(config_of({**load_preset(name).network, **fits}, name)))


def test_a_preset_of_pixels_that_asks_for_more_does_not_win_latents(monkeypatch):
    def loaded(name):
        preset = load_preset(name)
        return (
            msgspec.structs.replace(preset, about=msgspec.structs.replace(preset.about, images=600_000))
            if name == "imagenet64"
            else preset
        )

    monkeypatch.setattr(home, "load_preset", loaded)
    assert choose_preset(64, 10**6, gpu=True) == "imagenet64"
    assert choose_preset(64, 10**6, latents=True, gpu=True) == "latents512"


@pytest.mark.parametrize("size", range(4, 65))
@pytest.mark.parametrize("images", [1, 60_000])
@pytest.mark.parametrize("latents", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_every_size_has_one_that_is_for_it_and_asks_for_no_more_images(size, images, latents, gpu):
    preset = load_preset(choose_preset(size, images, latents, gpu))
    assert preset.about.pixels[0] <= size <= preset.about.pixels[1]
    assert preset.about.images <= images
    assert latents or not preset.about.kind
    assert gpu or not preset.about.gpu
    config = config_of(
        {**preset.network, "image_size": preset.data.image_size, "image_channels": 1, "num_classes": 0}, ""
    )
    assert config.for_size(size).image_size == size


def test_a_preset_is_chosen_from_its_very_number_of_images_on():
    least = load_preset("imagenet64").about.images
    assert choose_preset(64, least, gpu=True) == "imagenet64"
    assert choose_preset(64, least - 1, gpu=True) != "imagenet64"


def test_a_preset_of_ones_own_is_read_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("network: {channels: 8}\ntrain: {lr: 1e-4}\n")
    assert load_preset(str(path)) == Preset({"channels": 8}, {"lr": 1e-4})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "network: {}",
        "train: {}",
        "network: {}\ntrain: {}\noptimizer: {}",
        "network: {}\nnetwork: {}\ntrain: {}",
        "a",
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"mine\.yaml"):
        load_preset(str(path))
    with pytest.raises(FormatError, match="gone"):
        load_preset(str(tmp_path / "gone.yaml"))

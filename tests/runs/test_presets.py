"""Presets build the networks of their papers for the data they were made for, and one is chosen by size, count, kind and device."""

from functools import cache
from typing import Any

import pytest
import torch

from elbocli.core.averages import parse_average
from elbocli.core.prediction import Prediction
from elbocli.errors import FormatError, UsageError
from elbocli.files.schedule_file import resolve_schedule
from elbocli.networks import build, config_of, count_parameters, section_of
from elbocli.networks.transformers import DiTConfig, UViTConfig
from elbocli.runs import presets
from elbocli.runs.presets import FOLDER, NAMES, MadeFor, Preset, choose_preset, load_preset
from elbocli.runs.train_settings import ADAPTIVE

NUMBERS = "lr grad_clip label_dropout logsnr_min logsnr_max steps batch_size warmup_steps save_every"
FLASH_MOST = 256
"""The widest head that CUDA's flash attention takes."""


def test_numbers_in_names_count_as_numbers():
    sizes = [name for name in NAMES if name.startswith("imagenet")]
    assert sizes == ["imagenet64", "imagenet128", "imagenet256", "imagenet512"]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_numbers_that_are_numbers_and_an_objective_that_exists(name):
    train = load_preset(name).train
    assert all(isinstance(train[key], int | float) for key in NUMBERS.split())
    averages = train["ema"] if isinstance(train["ema"], list) else [train["ema"]]
    assert all(parse_average(str(each)).beta for each in averages)
    if train["schedule"] != ADAPTIVE:
        schedule = resolve_schedule(train["schedule"], train["logsnr_min"], train["logsnr_max"])
        assert (schedule.logsnr_min, schedule.logsnr_max) == (train["logsnr_min"], train["logsnr_max"])
    assert Prediction(train["prediction"]).spec.startswith(train["prediction"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.long
def test_a_preset_builds_for_what_it_was_made_for_and_its_range_and_says_its_size(name):
    preset = load_preset(name)
    about = preset.about
    data = preset.data
    assert about.pixels and data and about.kind == data.kind and data.images >= (about.images or 0)
    low, high = about.pixels
    assert low <= data.image_size <= high
    fits = {"image_channels": data.channels, "num_classes": data.classes if data.classes > 1 else 0}
    shallow = {key: int(key != "class_start") for key in ("blocks", "depth", "class_start") if key in preset.network}
    config: Any = config_of({**preset.network, **fits, "image_size": data.image_size}, name)
    with torch.device("meta"):
        for size in {low + (-low) % (32 if high > 64 else 8), high, data.image_size}:
            z = torch.empty(2, data.channels, size, size)
            network = build(config_of({**section_of(config), **shallow, "image_size": size}, name))
            assert network(z, torch.empty(2), torch.empty(2, dtype=torch.long)).shape == z.shape
        network = build(config)
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    assert f"{count_parameters(network):,} parameters" in " ".join(text.replace("#", "").split())
    assert not isinstance(config, UViTConfig | DiTConfig) or config.width // config.heads <= FLASH_MOST


# Settings of papers


@pytest.mark.parametrize(("size", "patching"), [(128, "none"), (256, "dwt-1"), (512, "dwt-2")])
def test_large_images_have_the_papers_settings_and_need_a_gpu(size, patching):
    preset = load_preset(f"imagenet{size}")
    wanted = {"weighting": "edm-monotonic", "shift": "auto", "schedule": "adaptive", "prediction": "v"}
    wanted |= {"steps": 700_000, "batch_size": 1024, "lr": 1e-4, "warmup_steps": 10_000, "grad_clip": 1.0}
    wanted |= {"ema": 0.9999, "beta2": 0.99, "adam_eps": 1e-12}
    assert preset.train == {**preset.train, **wanted}
    assert preset.network == {**preset.network, "family": "uvit", "dropout": 0.2, "depth": 36, "patching": patching}
    assert choose_preset(size, 3, 1_281_167, gpu=True) == f"imagenet{size}"
    with pytest.raises(UsageError):
        choose_preset(size, 3, 1_281_167)


# The choice

LEAST = load_preset("imagenet64").about.images or 0


@pytest.mark.parametrize(
    ("size", "channels", "images", "latents", "cpu", "gpu"),
    [
        (8, 3, 100, False, "digits", "digits"),
        (8, 3, 60_000, False, "digits", "cifar"),
        (32, 1, 300, False, "small32", "small32"),
        (32, 3, 300, False, "small32-colour", "small32-colour"),
        (32, 3, 60_000, False, "small32-colour", "cifar"),
        (48, 3, 60_000, False, "small64", "ffhq64"),
        (64, 3, LEAST - 1, False, "small64", "ffhq64"),
        (64, 3, LEAST, False, "small64", "imagenet64"),
        (32, 4, 1_281_167, True, "small32", "latents256"),
        (64, 3, 50_000, True, "small64", "latents512"),
        (32, 4, 1000, True, "small32", "small32"),
        (8, 3, 10**6, True, "digits", "cifar"),
    ],
)
def test_a_preset_is_chosen_by_size_and_count_and_kind_and_device(size, channels, images, latents, cpu, gpu):
    assert choose_preset(size, channels, images, latents) == cpu
    assert choose_preset(size, channels, images, latents, gpu=True) == gpu


@pytest.mark.parametrize("latents", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_every_size_has_one_that_is_for_it_and_asks_for_no_more_images(latents, gpu, monkeypatch):
    monkeypatch.setattr(presets, "load_preset", cache(load_preset))
    for size in range(4, 65):
        for images in (1, 60_000):
            about = load_preset(choose_preset(size, 3, images, latents, gpu)).about
            assert about.pixels and about.pixels[0] <= size <= about.pixels[1]
            assert (about.images or 0) <= images and (latents or not about.kind) and (gpu or not about.gpu)


# Files of one's own

START = "network: {channels: 8}\ntrain: {lr: 1e-4}\n"
DATA = "image_size: 8, channels: 4, classes: 1, images: 9"


def test_a_preset_of_ones_own_is_read_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(START)
    assert load_preset(str(path)) == Preset({"channels": 8}, {"lr": 1e-4})
    path.write_text(f"{START}data: {{{DATA}, kind: latents}}\n")
    assert load_preset(str(path)).data == MadeFor(8, 4, 1, 9, "latents")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "network: {}",
        "train: {}",
        f"{START}optimizer: {{}}",
        f"network: {{}}\n{START}",
        "a",
        *(
            f"{START}data: {data}"
            for data in (
                "{}",
                "8",
                "{image_size: 8, channels: 1, classes: 1}",
                f"{{{DATA}, kind: sounds}}",
                f"{{{DATA}, colour: 3}}",
                *(f"{{{DATA.replace('classes: 1', f'classes: {bad}')}}}" for bad in ("0", "1.5", "true")),
            )
        ),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"mine\.yaml"):
        load_preset(str(path))
    with pytest.raises(FormatError):
        load_preset(str(tmp_path / "gone.yaml"))

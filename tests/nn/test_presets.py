"""Presets are files that a command can use as they are."""

from pathlib import Path

import pytest

import elbocli.nn.presets as home
from elbocli.core.prediction import Prediction
from elbocli.errors import FormatError, UsageError
from elbocli.files.schedules import resolve_schedule
from elbocli.nn.presets import NAMES, choose_preset, load_preset

FOLDER = Path(home.__file__).parent


def test_every_file_is_listed_and_every_name_has_one():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_the_three_sections_and_numbers_that_are_numbers(name):
    preset = load_preset(name)
    assert set(preset) == {"about", "network", "train"}
    train = preset["train"]
    for key in (
        "lr",
        "ema",
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
    low, high = preset["about"]["pixels"]
    assert 0 < low <= high


@pytest.mark.parametrize("name", NAMES)
def test_a_presets_schedule_and_prediction_exist(name):
    train = load_preset(name)["train"]
    schedule = resolve_schedule(train["schedule"], train["logsnr_min"], train["logsnr_max"])
    assert (schedule.logsnr_min, schedule.logsnr_max) == (train["logsnr_min"], train["logsnr_max"])
    assert Prediction.parse(train["prediction"]).spec == train["prediction"]


def test_imagenet64_has_edms_settings():
    preset = load_preset("imagenet64")
    assert preset["network"] == {
        "channels": 192,
        "levels": [1, 2, 3, 4],
        "blocks": 3,
        "attention": [32, 16, 8],
        "dropout": 0.1,
    }
    assert (preset["train"]["batch"], preset["train"]["lr"]) == (4096, 1e-4)
    assert preset["train"]["warmup"] * 4096 == pytest.approx(10e6, rel=0.03)
    assert preset["train"]["steps"] * 4096 == pytest.approx(2500e6, rel=0.03)


@pytest.mark.parametrize("size", [8, 16, 17, 32, 48, 49, 64])
@pytest.mark.parametrize("images", [1, 49_999, 50_000, 1_281_167])
def test_the_preset_chosen_is_for_that_size_and_asks_for_no_more_images(size, images):
    about = load_preset(choose_preset(size, images))["about"]
    assert about["pixels"][0] <= size <= about["pixels"][1]
    assert about["images"] <= images


def test_a_preset_is_chosen_from_its_very_number_of_images_on():
    least = load_preset("imagenet64")["about"]["images"]
    assert choose_preset(64, least) == "imagenet64"
    assert choose_preset(64, least - 1) != "imagenet64"


def test_a_preset_of_ones_own_is_read_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("network: {channels: 8}\ntrain: {lr: 1e-4}\n")
    assert load_preset(str(path)) == {"network": {"channels": 8}, "train": {"lr": 1e-4}}


def test_an_unknown_preset_is_answered_with_the_known():
    with pytest.raises(UsageError, match="digits, cifar, small64, imagenet64"):
        load_preset("imagenet")


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

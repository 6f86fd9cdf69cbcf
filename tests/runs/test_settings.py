"""Options go over a config.yaml, that over a preset, that over defaults; and a run goes on with the settings that it had."""

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from elbocli.core.prediction import resolution_shift
from elbocli.core.schedule import schedule_of_shares
from elbocli.errors import FormatError, UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.dataset import Dataset
from elbocli.files.plugins import PluginFile
from elbocli.files.schedule_file import resolve_weighting, to_text
from elbocli.networks import NETWORKS, Network, NetworkConfig, family_of, network
from elbocli.runs.config import ConfigFile, RunConfig, read_settings
from elbocli.runs.settings import difference, resolve
from elbocli.runs.train_settings import SETTINGS
from elbocli.runtime import PRECISIONS
from elbocli.training.state import TrainState

TRAIN = "steps: 40, batch_size: 16, lr: 2.0e-3, weighting: edm, shift: 1.5, ema: 0.9"
UNET = "channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.1"
UVIT = "family: uvit, channels: 8, levels: [1, 2], blocks: 1, depth: 1, heads: 2, embedding: 8"
WHERE = Path("run/config.yaml")


@pytest.fixture
def file(tmp_path):
    """Path of the preset."""
    return tmp_path / "own.yaml"


@pytest.fixture
def resolved(file, digits):
    """resolved(train, network, more, **options): settings of a preset with these sections, for digits of 8 pixels."""

    def make(train="", network=UNET, more="", **options):
        file.write_text(f"network: {{{network}}}\ntrain: {{{train}}}\n{more}")
        return resolve({"preset": str(file), "device": "cpu", **options}, Dataset(digits))

    return make


@pytest.fixture
def again(digits):
    """again(run, **options): the settings with which a run goes on."""
    return lambda run, **options: resolve(options, Dataset(digits), ConfigFile(WHERE, run.config()))


@pytest.fixture
def fitted(tmp_path):
    """Write a schedule file with λ from −9 to 9, and return its path."""
    path = tmp_path / "s.yaml"
    path.write_text(to_text(schedule_of_shares(torch.linspace(-9, 9, 5, dtype=torch.float64), torch.ones(4), "")))
    return path


# A run goes on


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shift": 0.3},
        {"shift": "auto"},
        {"weighting": "sigmoid", "bias": 3.0, "shift": -1.0, "monotone": True},
        {"weighting": "v-mse:shift=1@cosine", "shift": 0.5},
        {"network.dropout": 0.25, "conditional": False},
        {"ema": ["0.7", "power:std=0.1"]},
        {"ema": ["0.7"], "snapshot_every": 10},
        {"schedule": "edm", "logsnr_min": -8.0},
        {"lr_decay": "cosine:final=.1", "precision": "bf16"},
    ],
    ids=str,
)
def test_the_same_options_again_or_none_of_them_go_on_with_the_same_run(options, resolved, again, file):
    """Options that refine what a preset says must not refine what they have refined already."""
    run = resolved(TRAIN, **options)
    file.unlink()
    for given in (options, {"preset": str(file), **options}, {}):
        assert again(run, **given).config() == run.config()


def test_a_schedules_file_gives_its_range_once(resolved, again, fitted):
    run = resolved(TRAIN, schedule=str(fitted), weighting=f"eps-mse@{fitted}")
    for given in ({}, {"schedule": str(fitted)}):
        assert again(run, **given).config() == run.config()
    assert (run.settings.logsnr_min, run.settings.logsnr_max) == (-9, 9)
    assert run.objective.weighting.support == (-9, 9)


def test_options_go_over_the_config_and_that_over_another_preset(resolved, again, digits):
    run = resolved(TRAIN, weighting="sigmoid:bias=1", lr=0.01, steps=7)
    found = again(run, lr=0.5, steps=9)
    assert difference(run.config(), found.config()) == ["--lr: the run has 0.01, asked for 0.5"]
    assert found.settings.steps == 9 and found.settings.weighting == "sigmoid:bias=1"
    other = again(run, preset="digits")
    assert other.network == resolve({"preset": "digits"}, Dataset(digits)).network
    assert other.settings.lr == 0.01 and other.settings.weighting == run.settings.weighting


@pytest.mark.parametrize(("given", "kept"), [({}, "bf16"), ({"precision": "auto"}, "bf16"), ({"precision": "fp32"}, "fp32")])
def test_a_run_that_goes_on_keeps_its_precision_unless_another_is_given(given, kept, resolved, again):
    assert again(resolved(precision="bf16"), **given, device="cuda").settings.precision == kept


@pytest.mark.parametrize(("size", "channels", "classes"), [(16, 3, 7), (8, 1, 1)])
@pytest.mark.parametrize("section", [UNET, UVIT])
def test_a_network_is_rebuilt_for_other_data_as_its_preset_would_build_it(section, size, channels, classes, file, resolved):
    run = resolved("", section, "data: {image_size: 8, channels: 1, classes: 10, images: 9}")
    other = RunData("other", None, 50, size, channels, classes)
    wanted = resolve({"preset": str(file), "conditional": True}, other).network
    file.unlink()
    assert resolve({}, other, ConfigFile(WHERE, run.config())).network == wanted


def test_a_plug_ins_network_is_rebuilt_and_named_where_it_is_lacking(resolved, again, digits):
    @dataclass(frozen=True)
    class PlainConfig(NetworkConfig):
        width: int = 8

    @network("plain-of-a-test", config=PlainConfig, source="this test")
    class Plain(Network):
        def __init__(self, config):
            super().__init__(config)
            self.layer = nn.Conv2d(config.image_channels, config.width, 1)

    try:
        run = resolved("", "family: plain-of-a-test, width: 5")
        config = run.config()
        assert again(run).network == run.network
    finally:
        NETWORKS.pop("plain-of-a-test")
    with pytest.raises(UsageError, match=r"--plugin FOLDER/mine\.py"):
        resolve({}, Dataset(digits), ConfigFile(WHERE, replace(config, plugins=[PluginFile("mine.py", "0")])))


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.stored])
def test_a_setting_may_change_when_a_run_goes_on_only_if_it_is_declared_free(name, resolved):
    now = resolved().config()
    setting = SETTINGS[name]
    had = getattr(now.settings, name)
    text = "rsqrt" if name == "lr_decay" else "another"
    others = {str: text, tuple[str, ...]: ("0.5",), bool: not had, int: 3, float: 0.5}
    other = next(each for each in (*get_args(setting.kind), others.get(setting.kind)) if each not in (had, str, ...))
    lines = difference(replace(now, settings=dataclasses.replace(now.settings, **{name: other})), now)
    assert bool(lines) != SETTINGS[name].free


def test_trainings_that_differ_in_their_seed_or_in_what_they_keep_alone_have_the_same_digest(resolved):
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"save_every": 3}, {"lr": 0.5}, {"network.dropout": 0.2}]
    facts = [resolved(TRAIN, **change).config().training_facts() for change in changes]
    same, *others = (told["settings_sha256"] for told in facts)
    assert others[:2] == [same] * 2 and len({same, *others}) == 3 and [told["training_seed"] for told in facts] == [0, 1, 0, 0, 0]


def test_a_run_goes_on_with_and_without_tf32_but_with_no_other_precision(resolved):
    runs = {name: resolved(precision=name).config() for name in PRECISIONS}
    for before, now in itertools.product(runs, runs):
        lines = difference(runs[before], runs[now])
        assert bool(lines) == (before != now and {before, now} != {"fp32", "tf32"}), (before, now)


# What a preset says


def shift_of(found):
    return resolve_weighting(found.settings.weighting).shift


AUTO = resolution_shift(8)


@pytest.mark.parametrize(
    ("train", "options", "shift"),
    [
        *((f"shift: {said}", {}, shift) for said, shift in (("auto", AUTO), ("-2", -2.0), ("0", 0.0))),
        ("weighting: edm-monotonic, shift: auto", {}, AUTO),
        ("weighting: edm-monotonic, shift: auto", {"shift": 0.0}, 0),
        ("shift: -2", {"shift": "auto"}, AUTO),
        ("shift: -2", {"weighting": "sigmoid", "shift": "auto"}, AUTO),
        ("weighting: edm-monotonic, shift: auto", {"weighting": "sigmoid:bias=1"}, 0),
    ],
)
def test_a_preset_shifts_its_own_weighting_unless_a_shift_is_given(train, options, shift, resolved):
    assert shift_of(resolved(train, **options)) == pytest.approx(shift)


def test_refinements_are_in_the_settings_that_they_refine(resolved, digits):
    options = {"bias": 3.0, "shift": 1.0, "monotone": True, "beta2": 0.99, "adam_eps": 1e-12, "conditional": False}
    found = resolved("batch_size: 4", **options)
    assert set(found.config().settings.written()) == {name for name, setting in SETTINGS.items() if setting.stored}
    assert found.settings.weighting == found.objective.weighting.spec == "sigmoid:bias=3,shift=1,monotone"
    assert found.network.num_classes == 0
    assert resolved("lr_decay: rsqrt").settings.lr_decay == "rsqrt:ref=70000"
    for run, wanted in ((found, (0.99, 1e-12)), (resolved("batch_size: 4"), (0.999, 1e-8))):
        group = TrainState(run, Dataset(digits)).optimizer.param_groups[0]
        assert (group["betas"], group["eps"]) == ((0.9, wanted[0]), wanted[1])


def test_another_family_of_networks_drops_the_settings_of_the_presets(resolved):
    options = {"family": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 2}
    network = resolved(**{f"network.{key}": value for key, value in options.items()}).network
    assert family_of(network).name == "dit" and network.patch == 2 and network.num_classes == 10


def test_the_images_size_is_told_to_what_asks_for_it(resolved):
    found = resolved("schedule: interpolated, weighting: v-mse@interpolated").settings
    assert found.schedule == "interpolated:low=32,high=256,size=8" and found.weighting == f"v-mse@{found.schedule}"
    assert resolved(schedule="interpolated:low=16").settings.schedule == "interpolated:low=16,high=256,size=8"


@pytest.mark.parametrize(
    "said",
    [
        *({"logsnr_min": "low"}, {"weighting": 3}, {"ema": None}, {"ema": []}, {"lr": math.nan}, {"nope": 1}),
        {"keep_last": 0},
        {"floor": 0.0},
    ],
)
def test_a_runs_setting_that_is_none_is_named_with_its_file(said):
    with pytest.raises(FormatError, match=rf"^run/config\.yaml: .*{next(iter(said))}"):
        read_settings({"lr": 1, **said}, WHERE)


def test_sections_of_a_config_that_are_none_are_refused_by_name(resolved, digits):
    content = resolved().config().json()
    for section in ({"data": {"path": 3}}, {"settings": {"lr": "fast"}}, {"network": {"family": "gan"}}, {"network": {}}):
        with pytest.raises(FormatError, match=r"^run/config\.yaml: "):
            resolve({}, Dataset(digits), ConfigFile(WHERE, RunConfig.of({**content, **section}, WHERE)))
    for case in (("", "family: uvit, attention: [8]"), ("", UNET, "about: {gpu: maybe}")):
        with pytest.raises(FormatError, match=r"own\.yaml"):
            resolved(*case)


# Data and machine


@pytest.mark.parametrize(("gb", "name"), [(12, "imagenet64"), (8, "ffhq64"), (2, "small64")])
def test_the_preset_fits_the_card(gb, name, monkeypatch):
    data = RunData("data", None, 10**6, 64, 1, 10)
    for name_of in ("is_available", "is_bf16_supported"):
        monkeypatch.setattr(torch.cuda, name_of, lambda **how: True)
    card = SimpleNamespace(total_memory=gb * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda which: card)
    assert resolve({"device": "cuda"}, data).settings.preset == name
    assert resolve({"device": "cpu"}, data).settings.preset == "small64"


def test_a_preset_for_latents_is_refused_on_pixels(digits):
    with pytest.raises(UsageError, match="latents256"):
        resolve({"preset": "latents256"}, Dataset(digits))


GPU = "about: {gpu: true}"


@pytest.mark.parametrize(
    ("train", "more", "options", "precision"),
    [
        ("", "", {}, "fp32"),
        ("", "", {"device": "cuda"}, "tf32"),
        ("", GPU, {"device": "cuda"}, "bf16"),
        ("precision: fp16", "", {}, "fp16"),
        ("precision: fp16", "", {"precision": "auto", "device": "cuda"}, "tf32"),
    ],
)
def test_precision_is_resolved_by_device_and_preset_unless_it_is_given(train, more, options, precision, resolved):
    assert resolved(train, UNET, more, **options).settings.precision == precision


@pytest.mark.parametrize(("steps", "intervals"), [(40, (8, 20)), (10, (2, 5)), (1, (1, 1)), (400, (8, 20))])
def test_a_shorter_run_shrinks_the_intervals_of_its_preset_but_none_that_was_given(steps, intervals, resolved):
    train = "steps: 40, warmup_steps: 8, save_every: 20, preview_every: 20"
    found = resolved(train, steps=steps, log_every=7).settings
    assert (found.warmup_steps, found.save_every, found.preview_every, found.log_every) == (*intervals, 20, 7)


def test_settings_that_fewer_steps_change_are_logged(resolved, again, caplog):
    caplog.set_level("INFO", "elbo")
    train = "steps: 40, warmup_steps: 8, save_every: 20, preview_every: 20"
    run = resolved(train, steps=10, log_every=7)
    assert [re.findall(r"--\S+ \d+ to \d+", text) for text in caplog.messages] == [
        ["--warmup-steps 8 to 2", "--save-every 20 to 5"]
    ]
    caplog.clear()
    again(run, steps=4)
    resolved(train, steps=400)
    assert caplog.messages == []

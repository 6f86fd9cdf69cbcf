"""What options, preset and dataset make of a run."""

import math
from pathlib import Path
from typing import Any

import pytest

from elbocli.core.logsnr import resolution_shift
from elbocli.errors import FormatError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.schedule_file import resolve_weighting
from elbocli.nn.networks import build, config_of, declaration_of
from elbocli.nn.networks.blocks import Attention
from elbocli.nn.presets import load_preset
from elbocli.run.settings import difference, resolve, run_settings
from elbocli.train.trainer import Trainer

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
    assert any("without the preset's --shift auto" in note for note in found.notes)
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
        "flip: 1",
        "device: cpu",
        "preset: digits",
        "precision: fp8",
        "t_sampling: even",
        "parallel: both",
        "on_nonfinite: go",
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
        group = Trainer(resolved("batch: 4", **options), Dataset(digits)).optimizer.param_groups[0]
        assert (group["betas"], group["eps"]) == ((0.9, wanted[0]), wanted[1])


@pytest.mark.parametrize("options", [{"beta2": 1.0}, {"beta2": -0.1}, {"adam_eps": 0.0}])
def test_betas_and_epsilons_that_make_no_optimizer_are_refused(resolved, options):
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", "-")):
        resolved("", **options)


def test_any_family_is_fitted_to_the_dataset_and_written_down(resolved):
    for network, family in ((NETWORK, "unet"), (UVIT, "uvit")):
        found = resolved("", network, dropout=0.25)
        assert (declaration_of(found.network).name, found.network.image_size, found.network.image_channels) == (
            family,
            8,
            1,
        )
        assert (found.network.num_classes, found.network.dropout) == (10, 0.25)
        assert config_of(found.config()["network"], "here") == found.network
    assert resolved("", UVIT, conditional=False).network.num_classes == 0


@pytest.mark.parametrize(
    ("preset", "size"), [("cifar", 20), ("cifar", 28), ("cifar", 48), ("digits", 6), ("digits", 16), ("small64", 56)]
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


def test_a_run_of_an_earlier_version_goes_on(resolved):
    now = resolved("").config()
    before = {**now, "network": dict(now["network"]), "settings": dict(now["settings"])}
    del before["network"]["family"], before["settings"]["beta2"], before["settings"]["adam_eps"]
    assert difference(before, now) == []
    assert config_of(before["network"], "here") == resolved("").network
    other = resolved("", UVIT, beta2=0.99).config()
    assert any("network family: the run has unet" in line for line in difference(before, other))
    assert any("--beta2: the run has 0.999, asked for 0.99" in line for line in difference(before, other))


def test_a_network_that_is_none_names_the_preset(resolved):
    with pytest.raises(FormatError, match=r"preset\.yaml: network family 'gan'.*unet, uvit"):
        resolved("", "network: {family: gan}\n")
    with pytest.raises(FormatError, match=r"preset\.yaml: section 'network'"):
        resolved("", "network: {family: uvit, attention: [8]}\n")


@pytest.mark.parametrize(
    "said", [{"logsnr_min": "low"}, {"weighting": 3}, {"schedule": None}, {"ema": None}, {"lr": math.nan}, {"nope": 1}]
)
def test_a_runs_config_with_a_setting_that_is_none_is_refused_by_name(said):
    with pytest.raises(FormatError, match=f"run/config.yaml: .*{next(iter(said))}"):
        run_settings(said, Path("run/config.yaml"))
    assert run_settings({"lr": 1, "ema": ["0.99"]}, Path("config.yaml")).ema == ("0.99",)

"""A run keeps the settings and the network of its config.yaml where nothing else is given, whatever became of its preset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from elbocli.core.schedule import schedule_of_shares
from elbocli.errors import FormatError, UsageError
from elbocli.files.checkpoint import PluginFile, RunData, checked_config
from elbocli.files.dataset import Dataset
from elbocli.files.schedule_file import to_text
from elbocli.nn.networks import NETWORKS, Network, NetworkConfig, build, count_parameters, network
from elbocli.run.settings import Known, Resolved, difference, resolve

TRAIN = "steps: 40, batch: 16, lr: 2.0e-3, weighting: edm, shift: 1.5, ema: 0.9"
UNET = "channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.1"
Make = Callable[..., Resolved]


def known_of(resolved: Resolved) -> Known:
    return Known(Path("run/config.yaml"), resolved.config())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A preset of one's own."""
    path = tmp_path / "own.yaml"
    path.write_text(f"network: {{{UNET}}}\ntrain: {{{TRAIN}}}\n")
    return path


@pytest.fixture
def first(file: Path, digits: Path) -> Make:
    """first(**options): a run that starts from that preset."""
    return lambda **options: resolve({"preset": str(file), "device": "cpu", **options}, Dataset(digits))


@pytest.fixture
def fitted(tmp_path: Path) -> str:
    """A schedule's file."""
    path = tmp_path / "s.yaml"
    path.write_text(to_text(schedule_of_shares(torch.linspace(-9, 9, 5, dtype=torch.float64), torch.ones(4), "")))
    return str(path)


REFINING: list[dict[str, Any]] = [
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
]


@pytest.mark.parametrize("options", REFINING, ids=str)
def test_the_same_options_again_or_none_of_them_go_on_with_the_same_run(
    options: dict[str, Any], first: Make, file: Path, digits: Path
) -> None:
    """Options that refine what a preset says must not refine what they have refined already."""
    run = first(**options)
    basis = known_of(run)
    file.unlink()
    for again in (options, {"preset": str(file), **options}, {}):
        assert resolve(again, Dataset(digits), basis).config() == run.config()


def test_a_schedules_file_gives_its_range_once_and_for_all(first: Make, fitted: str, digits: Path) -> None:
    run = first(schedule=fitted, weighting=f"schedule:{fitted}")
    for again in ({}, {"schedule": fitted}):
        found = resolve(again, Dataset(digits), known_of(run))
        assert found.config() == run.config() and (found.settings.logsnr_min, found.settings.logsnr_max) == (-9, 9)
        times = torch.linspace(0, 1, 9, dtype=torch.float64)
        assert found.schedule and run.schedule
        assert torch.equal(found.schedule.logsnr(times), run.schedule.logsnr(times))


def test_what_is_given_is_taken_and_only_that(first: Make, digits: Path) -> None:
    run = first(weighting="sigmoid:bias=1", lr=0.01, steps=7)
    found = resolve({"lr": 0.5, "steps": 9}, Dataset(digits), known_of(run))
    assert difference(run.config(), found.config()) == ["--lr: the run has 0.01, asked for 0.5"]
    assert found.settings.steps == 9 and found.settings.weighting == "sigmoid:bias=1"


def test_another_preset_has_its_own_network_under_the_settings_of_the_config(first: Make, digits: Path) -> None:
    """A config comes before a preset, and options come before both."""
    run = first(lr=0.01)
    found = resolve({"preset": "digits"}, Dataset(digits), known_of(run))
    assert found.network == resolve({"preset": "digits"}, Dataset(digits)).network
    assert found.settings.lr == 0.01 and found.settings.weighting == run.settings.weighting


@pytest.mark.parametrize(
    ("given", "kept"), [({}, "bf16"), ({"precision": "auto"}, "bf16"), ({"precision": "fp32"}, "fp32")]
)
def test_a_run_that_goes_on_keeps_its_precision_unless_another_is_given(
    given: dict[str, str], kept: str, first: Make, digits: Path
) -> None:
    run = first(precision="bf16")
    for device in ("cpu", "cuda"):
        assert resolve({**given, "device": device}, Dataset(digits), known_of(run)).settings.precision == kept


SIZES = [RunData("other", None, 50, size, channels, classes) for size, channels, classes in [(16, 3, 7), (8, 1, 1)]]


@pytest.mark.parametrize("other", SIZES, ids=str)
@pytest.mark.parametrize(
    "network", [UNET, "family: uvit, channels: 8, levels: [1, 2], blocks: 1, depth: 1, heads: 2, embedding: 8"]
)
def test_a_network_is_rebuilt_for_other_data_as_its_preset_would_build_it(
    network: str, other: RunData, file: Path, first: Make
) -> None:
    file.write_text(
        f"network: {{{network}}}\ndata: {{image_size: 8, channels: 1, classes: 10, images: 9}}\ntrain: {{}}\n"
    )
    basis, wanted = known_of(first()), resolve({"preset": str(file), "conditional": True}, other).network
    file.write_text(f"network: {{{UNET.replace('channels: 8', 'channels: 16')}}}\ntrain: {{}}\n")
    assert resolve({}, other, basis).network == wanted
    file.unlink()
    assert count_parameters(build(resolve({}, other, basis).network)) == count_parameters(build(wanted))


@dataclass(frozen=True)
class PlainConfig(NetworkConfig):
    """The config of a plug-in's network."""

    width: int = 8


@pytest.fixture
def plain() -> Iterator[str]:
    """The name of a plug-in's network."""

    @network("plain-of-a-test", config=PlainConfig, source="this test")
    class Plain(Network):
        def __init__(self, config: PlainConfig) -> None:
            super().__init__(config)
            self.layer = nn.Conv2d(config.image_channels, config.width, 1)

    yield "plain-of-a-test"
    NETWORKS.pop("plain-of-a-test", None)


def test_a_plug_ins_network_is_rebuilt_and_named_where_it_is_lacking(
    plain: str, file: Path, first: Make, digits: Path
) -> None:
    file.write_text(f"network: {{family: {plain}, width: 5}}\ntrain: {{}}\n")
    run = first()
    config = run.config()
    file.unlink()
    assert resolve({}, Dataset(digits), known_of(run)).network == run.network
    NETWORKS.pop(plain)
    with pytest.raises(FormatError, match=f"no network family is called '{plain}'"):
        resolve({}, Dataset(digits), Known(Path("run/config.yaml"), config))
    with pytest.raises(UsageError, match=r"plug-in mine\.py .*add --plugin mine.py"):
        known = Known(Path("run/config.yaml"), replace(config, plugins=[PluginFile("mine.py", "0")]))
        resolve({}, Dataset(digits), known)


@pytest.mark.parametrize(
    ("section", "content"),
    [
        ("data", {"path": 3}),
        ("settings", {"lr": "fast"}),
        ("network", {"family": "gan"}),
        ("network", {}),
    ],
)
def test_a_config_that_is_no_whole_runs_is_refused_by_name(
    section: str, content: dict[str, Any], first: Make, digits: Path
) -> None:
    with pytest.raises(FormatError, match=r"^run/config\.yaml: "):
        path = Path("run/config.yaml")
        known = Known(path, checked_config({**first().config().json(), section: content}, path))
        resolve({}, Dataset(digits), known)

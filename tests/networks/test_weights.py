"""Weights: their averages, their way to other classes and sizes, and what a denoiser makes of a network's output."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from identities import diffuse, target
from torch import Tensor, nn

from elbocli.core.averages import parse_average
from elbocli.core.prediction import PREDICTIONS, Prediction
from elbocli.errors import UsageError
from elbocli.networks import NETWORKS, Network, NetworkConfig, build, network
from elbocli.networks.edm2 import EDM2Config
from elbocli.networks.transformers import DiTConfig, UViTConfig
from elbocli.networks.unet import UNetConfig
from elbocli.networks.weights import Averages, class_axes, shapes_of, swap, transfer
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.guidance import THRESHOLDS, Guidance

# Averages

SPECS = {
    "0.95": "ema-0.95",
    "halflife:images=100,ramp=0.1": "ema-halflife-100-ramp-0.1",
    "power:std=0.05": "ema-power-0.05",
    "power:std=0.2": "ema-power-0.2",
}


def test_averages_follow_their_recurrences_side_by_side():
    torch.manual_seed(0)
    live = {"w": torch.randn(3, 2), "b": torch.randn(2)}
    before = live["b"].clone()
    averages = Averages([*map(parse_average, SPECS)], live)
    expected = [live["w"].double() for _ in SPECS]
    for step in range(1, 200):
        live["w"].normal_()
        averages.follow(step, 8 * step, 8)
        for index, spec in enumerate(SPECS):
            beta = parse_average(spec).beta(step, 8 * step, 8)
            expected[index] = beta * expected[index] + (1 - beta) * live["w"].double()
    assert [*averages] == [*SPECS.values()]
    for average, true in zip(averages.values(), expected, strict=True):
        torch.testing.assert_close(average["w"].double(), true, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(average["b"], before, rtol=1e-6, atol=0)


def test_an_update_never_waits_for_the_device():
    """A tensor on the meta device has no value; code that reads a value from the device raises here."""
    Averages([*map(parse_average, SPECS)], {"x": torch.empty(2, device="meta")}).follow(1, 1, 1)


def test_a_swap_exchanges_in_place_and_back_bit_for_bit_after_an_error_too():
    torch.manual_seed(1)
    live = {"a": torch.randn(5, 3), "b": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]), "n": torch.tensor(3)}
    average = {key: torch.randn(value.shape).to(value.dtype) for key, value in live.items()}
    places = [value.data_ptr() for value in (*live.values(), *average.values())]

    def bits(values: dict[str, Tensor]) -> list[bytes]:
        return [value.numpy().tobytes() for value in values.values()]

    before = bits(live), bits(average)
    with pytest.raises(RuntimeError), swap(live, average):
        assert (bits(average), bits(live)) == before and torch.is_grad_enabled()
        raise RuntimeError
    assert (bits(live), bits(average)) == before
    assert [value.data_ptr() for value in (*live.values(), *average.values())] == places


# To other classes and sizes


@dataclass(frozen=True)
class OddConfig(NetworkConfig):
    """A stranger's: classes on the second axis, and a last row for no class; a weight for each column of pixels."""

    width: int = 6


@dataclass(frozen=True)
class BlindConfig(NetworkConfig):
    """A network that makes of a label what it will."""


@pytest.fixture(scope="module", autouse=True)
def strangers() -> Iterator[None]:
    """Networks of other layouts than elbo's own."""

    @network("odd", config=OddConfig, source="a test")
    class Odd(Network):
        def __init__(self, config: OddConfig):
            super().__init__(config)
            self.first = nn.Conv2d(config.image_channels, config.width, 1)
            self.last = nn.Conv2d(config.width, config.image_channels, 1)
            self.columns = nn.Parameter(torch.zeros(config.image_size))
            self.table = nn.Parameter(torch.randn(config.width, config.num_classes + 1)) if config.num_classes else None

        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
            h = self.first(z) + self.columns + logsnr.view(-1, 1, 1, 1) / 20
            if self.table is not None:
                given = torch.full((len(z),), -1) if labels is None else labels
                h = h + self.table.t()[given][:, :, None, None]
            return self.last(h.sin())

    @network("blind", config=BlindConfig, source="a test")
    class Blind(Network):
        def __init__(self, config: BlindConfig):
            super().__init__(config)
            self.only = nn.Conv2d(config.image_channels, config.image_channels, 1)

    yield
    del NETWORKS["odd"], NETWORKS["blind"]


CONFIGS: dict[str, Any] = {
    "unet": UNetConfig(8, 2, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,)),
    "uvit": UViTConfig(8, 2, 5, channels=8, levels=(1, 2), blocks=1, depth=1, heads=2, embedding=8),
    "dit": DiTConfig(8, 2, 5, width=24, depth=1, heads=2, patch=2),
    "odd": OddConfig(8, 2, 5),
}
FAMILY = pytest.mark.parametrize("family", CONFIGS)


def drawn(config: NetworkConfig) -> Any:
    """A network all of whose weights are random."""
    torch.manual_seed(0)
    made = build(config).eval()
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.3)
    return made


def taken(source: Network, now: NetworkConfig, rows: list[int | None]) -> Any:
    weights = source.state_dict()
    made = build(now).eval()
    lacking = made.load_state_dict(transfer(source.config, now, rows, weights.__getitem__), strict=False)
    assert lacking.unexpected_keys == [] and not set(lacking.missing_keys) & weights.keys()
    return made


def zeros(config: NetworkConfig) -> Callable[[str], Tensor]:
    return lambda name: torch.zeros(shapes_of(config)[name])


@torch.no_grad()
def out(made: Network, label: int | None) -> Tensor:
    torch.manual_seed(1)
    z = torch.randn(4, 2, made.config.image_size, made.config.image_size)
    return made(z, torch.tensor([-8.0, -1.0, 2.0, 9.0]), None if label is None else torch.full((4,), label))


@FAMILY
@pytest.mark.parametrize(
    "rows", [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, None, None], [4, None, 0], [4, 3, 2, 1, 0], [None, 1]], ids=str
)
def test_classes_that_stay_mean_what_they_meant_and_new_ones_begin_as_no_class(family, rows):
    source = drawn(CONFIGS[family])
    made = taken(source, replace(source.config, num_classes=len(rows), dropout=0.2), rows)
    for row, was in enumerate([*rows, None]):
        label = -1 if row == len(rows) else row
        assert torch.equal(out(made, label), out(source, -1 if was is None else was))


@FAMILY
def test_a_table_of_classes_can_begin_and_end(family):
    config = CONFIGS[family]
    source = drawn(replace(config, num_classes=0))
    told = taken(source, config, [None] * 5)
    assert all(torch.equal(out(told, label), out(source, None)) for label in (0, 4, -1, None))
    if family not in ("odd", "dit"):  # whose row for no class goes with the table
        again = taken(drawn(config), replace(config, num_classes=0), [])
        assert torch.equal(out(again, None), out(drawn(config), -1))


def test_where_zeros_are_no_class_to_be_new_ones_are_drawn_and_the_others_stay():
    """EDM2's rows have unit magnitude by output, whatever is stored: zeros would make the other classes louder."""
    source = drawn(EDM2Config(8, 2, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,)))
    source.constrain(dict(source.named_parameters()), torch.tensor(False))
    made = taken(source, source.config.for_classes(8), [4, None, 0, None, 1, 2, 3, None])
    for row, was in ((0, 4), (2, 0), (4, 1), (-1, -1)):
        torch.testing.assert_close(out(made, row), out(source, was), rtol=1e-4, atol=1e-5)
    table = made.conditioning.classes.weight
    assert torch.allclose(table.square().mean(1), torch.ones(len(table)), atol=1e-2) and bool((table[:, 1] != 0).all())
    assert torch.equal(made.conditioning.phases, source.conditioning.phases)


def test_at_another_size_weights_are_the_same_and_positions_are_interpolated():
    """A linear ramp stays one: to the middle of a cell twice as fine."""
    source = drawn(CONFIGS["unet"])
    made = taken(source, source.config.for_size(16), [*range(5)])
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), made.parameters(), strict=True))
    source = drawn(CONFIGS["uvit"])
    source.position.data.copy_(torch.arange(4.0).expand(1, source.position.shape[1], 4, 4))
    made = taken(source, source.config.for_size(16), [*range(5)])
    torch.testing.assert_close(made.position[0, 0, 4, 2:6], torch.tensor([0.75, 1.25, 1.75, 2.25]), atol=0.1, rtol=0)
    assert torch.equal(made.first.weight, source.first.weight)


BLIND = BlindConfig(8, 2, 5)


@pytest.mark.parametrize(
    ("source", "now", "rows", "word"),
    [
        *(
            (CONFIGS["unet"], replace(CONFIGS["unet"], **change), [*range(5)], "settings")
            for change in ({"channels": 16}, {"image_channels": 3}, {"image_size": 6, "attention": (2,)})
        ),
        (CONFIGS["odd"], CONFIGS["odd"].for_size(5), [*range(5)], "8 pixels"),
        (BLIND, BLIND.for_classes(6), [0, 1, 2, 3, 4, None], "row"),
        (BLIND, BLIND.for_classes(3), [1, 0, 2], "row"),
    ],
)
def test_other_networks_and_sizes_and_classes_without_rows_are_refused(source, now, rows, word):
    with pytest.raises(UsageError, match=word):
        transfer(source, now, rows, zeros(source))
    assert len(transfer(BLIND, BLIND.for_classes(3), [0, 1, 2], zeros(BLIND))) == 2


def test_a_network_that_must_keep_its_classes_has_no_rows_of_classes(monkeypatch):
    def refuse(config, num_classes):
        raise UsageError("5 classes")

    assert class_axes(CONFIGS["unet"])
    monkeypatch.setattr(UNetConfig, "for_classes", refuse)
    assert class_axes(CONFIGS["unet"]) == {}


# From the network's output to x̂, with guidance


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_perfect_network_gives_back_the_data_and_is_guided_by_anothers(name):
    """D = D_guide + scale (D − D_guide) inside the interval, though one network outputs x and the other v."""
    x, weak, eps = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64)
    prediction = Prediction(name)
    guide_prediction = Prediction("v")
    for logsnr in (-6.0, 0.5, 6.0):
        level = torch.full((2,), logsnr, dtype=torch.float64)
        z = diffuse(x, eps, level)
        eps_of_weak = (z - level.sigmoid().sqrt()[0] * weak) / (-level).sigmoid().sqrt()[0]
        weak_out = target(guide_prediction, weak, eps_of_weak, level)
        own_out = target(prediction, x, eps, level)
        guide = Denoiser(lambda *_, out=weak_out: out, guide_prediction)
        denoise = Denoiser(lambda *_, out=own_out: out, prediction, Guidance(2.0, 0.0, 1.0), guide=guide)
        torch.testing.assert_close(denoise(z, logsnr), weak + 2 * (x - weak) if logsnr == 0.5 else x)
        assert (denoise.calls, denoise.evaluations) == (1, 2 if logsnr == 0.5 else 1)


def test_guidance_mixes_two_outputs_inside_its_interval_only_and_clipping_comes_after():
    def labelled(z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        return labels.to(z.dtype).view(-1, 1, 1, 1).expand_as(z)

    def found(logsnr: float, *guidance: float, **more: Any) -> Any:
        denoise = Denoiser(labelled, Prediction("x"), Guidance(*guidance), torch.tensor([0, 4]), **more)
        return denoise(torch.zeros(2, 1, 2, 2), logsnr)[:, 0, 0, 0].tolist(), denoise.evaluations

    assert found(0.5, 3.0, -1.0, 1.0) == ([-1 + 3 * 1, -1 + 3 * 5], 2)
    assert found(2.0, 3.0, -1.0, 1.0) == ([0, 4], 1)
    assert found(0.5, 0.5, threshold=THRESHOLDS.parse("static")) == ([-0.5, 1.0], 2)  # −1 + ½·5 = 1.5 cut; first cut: 0

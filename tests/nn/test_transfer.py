"""Weights taken to other classes and sizes: what a network computed before, it computes after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elbocli.errors import UsageError
from elbocli.nn.networks import NETWORKS, Network, NetworkConfig, build, network
from elbocli.nn.networks.edm2 import EDM2Config
from elbocli.nn.networks.own_network import ModuleConfig
from elbocli.nn.networks.transformers import DiTConfig, UViTConfig
from elbocli.nn.networks.unet import UNetConfig
from elbocli.nn.weights import class_axes, shapes_of, transfer


@dataclass(frozen=True)
class OddConfig(NetworkConfig):
    """A stranger's: classes on the second axis, and a last row for no class; a weight for each column of pixels."""

    width: int = 6


@pytest.fixture(scope="module", autouse=True)
def odd() -> Iterator[None]:
    """A network of another layout than elbo's own."""

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

    yield
    del NETWORKS["odd"]


CONFIGS: dict[str, NetworkConfig] = {
    "unet": UNetConfig(8, 2, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,)),
    "uvit": UViTConfig(8, 2, 5, channels=8, levels=(1, 2), blocks=1, depth=1, heads=2, embedding=8),
    "dit": DiTConfig(8, 2, 5, width=24, depth=1, heads=2, patch=2),
    "odd": OddConfig(8, 2, 5),
}
FAMILY = pytest.mark.parametrize("family", CONFIGS)


def drawn(config: NetworkConfig) -> Network:
    """A network all of whose weights are random, zeros too."""
    torch.manual_seed(0)
    made = build(config).eval()
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.3)
    return made


def taken(source: Network, now: NetworkConfig, rows: list[int | None]) -> Network:
    weights = source.state_dict()
    made = build(now).eval()
    found = transfer(source.config, now, rows, lambda name: weights[name].detach())
    lacking = made.load_state_dict(found, strict=False)
    assert lacking.unexpected_keys == [] and not set(lacking.missing_keys) & weights.keys()
    return made


def zeros(config: NetworkConfig) -> Callable[[str], Tensor]:
    return lambda name: torch.zeros(shapes_of(config)[name])


def out(made: Network, labels: list[int] | None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4, 2, made.config.image_size, made.config.image_size, generator=generator)
    given = None if labels is None else torch.tensor(labels)
    with torch.no_grad():
        return made(z, torch.tensor([-8.0, -1.0, 2.0, 9.0]), given)


@FAMILY
def test_the_same_network_is_taken_bit_for_bit(family: str) -> None:
    source = drawn(CONFIGS[family])
    same = taken(source, replace(source.config, dropout=0.2), list(range(5)))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), same.parameters(), strict=True))


@FAMILY
@pytest.mark.parametrize(
    "rows", [[0, 1, 2, 3, 4, None, None], [0, 1, 2], [4, None, 0], [4, 3, 2, 1, 0], [None, 1]], ids=str
)
def test_classes_that_stay_mean_what_they_meant_and_new_ones_begin_as_no_class(
    family: str, rows: list[int | None]
) -> None:
    source = drawn(CONFIGS[family])
    made = taken(source, replace(source.config, num_classes=len(rows)), rows)
    for row, was in enumerate(rows):
        if was is not None:
            assert torch.equal(out(made, [row] * 4), out(source, [was] * 4))
    assert torch.equal(out(made, [-1] * 4), out(source, [-1] * 4))
    if None in rows:
        assert torch.equal(out(made, [rows.index(None)] * 4), out(source, [-1] * 4))


@FAMILY
def test_a_table_of_classes_can_begin_and_end(family: str) -> None:
    config = CONFIGS[family]
    source = drawn(replace(config, num_classes=0))
    told = taken(source, config, [None] * 5)
    assert all(torch.equal(out(told, labels), out(source, None)) for labels in ([0, 1, 2, 4], [-1] * 4, None))
    if family not in ("odd", "dit"):  # whose row for no class goes with the table
        again = taken(drawn(config), replace(config, num_classes=0), [])
        assert torch.equal(out(again, None), out(drawn(config), [-1] * 4))


def test_where_zeros_are_no_class_to_be_new_ones_are_drawn_and_the_others_stay() -> None:
    """EDM2's rows have unit magnitude by output, whatever is stored: zeros would make the other classes louder."""
    source = drawn(EDM2Config(8, 2, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,)))
    source.constrain(dict(source.named_parameters()), torch.tensor(False))
    made = taken(source, source.config.for_classes(8), [4, None, 0, None, 1, 2, 3, None])
    for row, was in ((0, 4), (2, 0), (4, 1), (-1, -1)):
        torch.testing.assert_close(out(made, [row] * 4), out(source, [was] * 4), rtol=1e-4, atol=1e-5)
    table = made.conditioning.classes.weight
    assert torch.allclose(table.square().mean(1), torch.ones(len(table)), atol=1e-2) and bool((table[:, 1] != 0).all())
    assert torch.equal(made.conditioning.phases, source.conditioning.phases)


def test_a_network_of_convolutions_and_attention_is_the_same_at_any_size() -> None:
    source = drawn(CONFIGS["unet"])
    made = taken(source, source.config.for_size(16), list(range(5)))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), made.parameters(), strict=True))


def test_positions_are_interpolated() -> None:
    """A linear ramp stays one: to the middle of a cell twice as fine."""
    source = drawn(CONFIGS["uvit"])
    ramp = torch.arange(4.0).expand(1, source.position.shape[1], 4, 4)
    source.position.data.copy_(ramp)
    made = taken(source, source.config.for_size(16), list(range(5)))
    inside = made.position[0, 0, 4, 2:6]
    torch.testing.assert_close(inside, torch.tensor([0.75, 1.25, 1.75, 2.25]), atol=0.1, rtol=0)
    assert torch.equal(made.first.weight, source.first.weight)


def test_tables_are_found_by_what_one_class_more_lengthens() -> None:
    assert class_axes(CONFIGS["odd"]) == {"table": 1} and shapes_of(CONFIGS["odd"])["table"] == (6, 6)
    assert class_axes(CONFIGS["unet"]) == {"conditioning.classes.weight": 0}
    assert class_axes(replace(CONFIGS["unet"], num_classes=0)) == {}


@pytest.mark.parametrize(
    "change", [{"channels": 16}, {"image_channels": 3}, {"blocks": 2}, {"image_size": 6, "attention": (2,)}], ids=str
)
def test_other_networks_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="other settings"):
        transfer(CONFIGS["unet"], replace(CONFIGS["unet"], **change), list(range(5)), torch.empty)


def test_a_size_for_which_weights_are_not_is_refused() -> None:
    source = CONFIGS["odd"]
    with pytest.raises(UsageError, match=r"8 pixels can't be taken to 5"):
        transfer(source, source.for_size(5), list(range(5)), zeros(source))


def test_classes_without_rows_stay_as_they_are() -> None:
    """A network that makes of a label what it will: it is no worse for fewer, but others can't be given to it."""

    @dataclass(frozen=True)
    class BlindConfig(NetworkConfig):
        pass

    @network("blind", config=BlindConfig, source="a test")
    class Blind(Network):
        def __init__(self, config: BlindConfig):
            super().__init__(config)
            self.only = nn.Conv2d(config.image_channels, config.image_channels, 1)

    try:
        source = BlindConfig(8, 2, 5)
        assert len(transfer(source, replace(source, num_classes=3), [0, 1, 2], zeros(source))) == 2
        for rows in ([0, 1, 2, 3, 4, None], [1, 0, 2]):
            with pytest.raises(UsageError, match="no row for each class"):
                transfer(source, replace(source, num_classes=len(rows)), rows, zeros(source))
    finally:
        del NETWORKS["blind"]


def test_a_module_of_ones_own_keeps_its_label_for_no_class_behind_the_classes() -> None:
    behind, other = (ModuleConfig(8, 2, 5, name="mine.py:Net", null_class=(label,)) for label in (5, 9))
    assert behind.for_classes(7).null_class == (7,) and other.for_classes(0).null_class == (9,)
    with pytest.raises(UsageError, match="label 9 for no class"):
        other.for_classes(12)

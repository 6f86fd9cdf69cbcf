"""The ADM U-Net: its size, its start, what it listens to."""

import pytest
import torch

from elbocli.errors import UsageError
from elbocli.nn.networks import count_parameters
from elbocli.nn.presets import NAMES, choose_preset, load_preset
from elbocli.nn.unet import UNet, UNetConfig

SMALL = UNetConfig(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,))


def config_of(name: str, size: int, classes: int) -> UNetConfig:
    section = load_preset(name)["network"]
    return UNetConfig(
        size, 3, classes, **{**section, "levels": tuple(section["levels"]), "attention": tuple(section["attention"])}
    )


def awake(config: UNetConfig = SMALL) -> UNet:
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = UNet(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return network


def inputs(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 8, 8, generator=draw), torch.randn(batch, generator=draw) * 5, torch.arange(batch) % 5


def test_imagenet64_has_the_size_of_edms_network() -> None:
    with torch.device("meta"):
        assert count_parameters(UNet(config_of("imagenet64", 64, 1000))) == 295_899_267


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_builds_for_the_sizes_it_is_for(name: str) -> None:
    low, high = load_preset(name)["about"]["pixels"]
    for size in {low + (-low) % 8, high}:
        with torch.device("meta"):
            z = torch.empty(2, 3, size, size)
            assert UNet(config_of(name, size, 10))(z, torch.empty(2), torch.empty(2, dtype=torch.long)).shape == z.shape


def test_a_preset_is_chosen_by_size_and_count() -> None:
    assert choose_preset(8, 100) == "digits"
    assert choose_preset(32, 50_000) == "cifar"
    assert choose_preset(64, 1000) == "small64"
    assert choose_preset(64, 1_281_167) == "imagenet64"
    with pytest.raises(UsageError, match="no preset is for 256 pixels"):
        choose_preset(256, 1000)


def test_a_new_network_says_nothing() -> None:
    z, logsnr, labels = inputs()
    assert not UNet(SMALL)(z, logsnr, labels).any()


def test_level_and_class_matter_and_no_class_is_minus_one() -> None:
    network = awake()
    z, logsnr, labels = inputs()
    with torch.no_grad():
        out = network(z, logsnr, labels)
        assert not torch.allclose(out, network(z, logsnr + 1, labels))
        assert not torch.allclose(out, network(z, logsnr, (labels + 1) % 5))
        assert torch.equal(network(z, logsnr, torch.full_like(labels, -1)), network(z, logsnr, None))


def test_examples_of_a_batch_do_not_mix() -> None:
    network = awake()
    z, logsnr, labels = inputs()
    with torch.no_grad():
        alone = network(z[2:3], logsnr[2:3], labels[2:3])
        torch.testing.assert_close(network(z, logsnr, labels)[2:3], alone, rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_every_parameter() -> None:
    network = awake()
    network(*inputs(5)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_levels_that_do_not_fit_are_refused() -> None:
    for change in (
        {"image_size": 6, "levels": (1, 2, 2)},
        {"channels": 6},
        {"levels": ()},
        {"dropout": 1.0},
        {"blocks": 0},
    ):
        with pytest.raises(UsageError, match="network: "):
            UNetConfig(**{**SMALL.__dict__, **change})

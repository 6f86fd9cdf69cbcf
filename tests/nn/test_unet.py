"""The ADM U-Net: its size, its start, what it listens to."""

import pytest
import torch

from elbocli.errors import UsageError
from elbocli.nn.networks import build, config_of, count_parameters
from elbocli.nn.networks.unet import UNet, UNetConfig
from elbocli.nn.presets import load_preset

SMALL = UNetConfig(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,))


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
        section = {**load_preset("imagenet64").network, "image_size": 64, "image_channels": 3, "num_classes": 1000}
        assert count_parameters(build(config_of(section, "imagenet64"))) == 295_899_267


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
        {"image_size": 3, "levels": (1, 2, 2)},
        {"channels": 6},
        {"levels": ()},
        {"dropout": 1.0},
        {"image_size": 0},
        {"image_channels": 0},
        {"num_classes": -1},
        {"blocks": 0},
    ):
        with pytest.raises(UsageError, match="network: "):
            UNetConfig(**{**SMALL.__dict__, **change})

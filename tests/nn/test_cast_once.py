"""Weights cast once: the same outputs to the last bit, in half the memory."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.nn.denoiser import cast_weights
from elbocli.nn.networks import Network, NetworkConfig, build
from elbocli.nn.networks.dit import DiTConfig
from elbocli.nn.networks.unet import UNetConfig
from elbocli.nn.networks.uvit import UViTConfig
from elbocli.runtime.device import PRECISIONS, Precision

CPU = torch.device("cpu")
CONFIGS = {
    "unet": UNetConfig(8, 3, 5, channels=16, levels=(1, 2), blocks=1, attention=(4,)),
    "unconditional": UNetConfig(8, 1, 0, channels=16, levels=(1, 2), blocks=1, attention=(4,)),
    "uvit": UViTConfig(8, 3, 5, 16, (1, 2), blocks=1, depth=2, heads=2, embedding=24),
    "dit": DiTConfig(8, 3, 5, width=32, depth=6, heads=2, patch=2, variance=True),
    "wavelets": UViTConfig(16, 3, 5, 16, (1, 2), blocks=1, depth=2, heads=2, embedding=24, patching="dwt-2"),
}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_outputs_are_autocasts_to_the_last_bit(config: NetworkConfig, precision: str) -> None:
    torch.manual_seed(0)
    plain = build(config).eval().requires_grad_(False)
    for parameter in plain.parameters():
        parameter.normal_(0, 0.1)
    network = copy.deepcopy(plain)
    cast_weights(network, Precision(precision, CPU))
    z = torch.randn(3, config.image_channels, config.image_size, config.image_size)
    for labels in (None, torch.tensor([0, -1, 4])) if config.num_classes else (None,):
        with torch.inference_mode(), Precision(precision, CPU).autocast():
            given = z, torch.tensor([-9.5, 0.003, 11.0]), labels
            assert torch.equal(network(*given), plain(*given))
    lower = {name for name, weight in network.named_parameters() if weight.dtype == PRECISIONS[precision]}
    whole = {name for name, weight in network.named_parameters() if weight.dtype == torch.float32}
    norms = {"norm.weight"} & {name for name, _ in plain.named_parameters()}
    assert {"conditioning.first.weight", "conditioning.first.bias"} | norms <= whole
    assert lower | whole == {name for name, _ in plain.named_parameters()}
    sizes = [sum(weight.nbytes for weight in each.parameters()) for each in (network, plain)]
    assert sizes[0] < 0.55 * sizes[1]


def test_in_single_precision_nothing_is_cast() -> None:
    network = build(CONFIGS["unet"])
    cast_weights(network, Precision("fp32", CPU))
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_weights_that_are_also_used_as_they_are_stay() -> None:
    class Shared(Network):
        """Somebody's own, with a layer outside of autocast and a weight that is used in both ways."""

        def __init__(self) -> None:
            super().__init__(NetworkConfig(2, 1, 0))
            self.wide, self.tied, self.usual = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
            x = self.usual(self.tied(z.flatten(1))).float()
            with torch.autocast("cpu", enabled=False):
                x = F.linear(self.wide(x), self.tied.weight)
            return x.view_as(z)

    network = Shared()
    cast_weights(network, Precision("bf16", CPU))
    found = {name for name, weight in network.named_parameters() if weight.dtype == torch.bfloat16}
    assert found == {"usual.weight", "usual.bias", "tied.bias"}

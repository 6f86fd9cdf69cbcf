"""Write a network of timm's as an extractor: python export_timm.py MODEL IMAGE_SIZE OUT.pt2 [WEIGHTS]

MODEL as timm calls it (timm.list_models()); its published weights are fetched unless WEIGHTS names a file. IMAGE_SIZE: of the
images that will be scored. `elbo eval samples.h5 --ref data.h5 --extractor OUT.pt2` then measures by its features.
"""

import sys
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

import elbocli


class Features(nn.Module):
    """uint8 [B, 3, H, W] → features [B, D], after the preprocessing that the network's authors state."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        config = resolve_model_data_config(network)
        self.size = config["input_size"][1:]
        self.mode = config["interpolation"]
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), self.size, mode=self.mode, antialias=True)
        return self.network((x / 255 - self.mean) / self.std)


name, size, out, *weights = sys.argv[1:]
network: Any = timm.create_model(name, pretrained=not weights, checkpoint_path=weights[0] if weights else "")
network.reset_classifier(0)
network.requires_grad_(False)
examples = torch.zeros(2, 3, int(size), int(size), dtype=torch.uint8)
elbocli.export_extractor(Features(network), examples, out)

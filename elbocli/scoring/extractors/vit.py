"""Networks of extractors: those of timm in vit.yaml, and a tiny network for tests."""

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.errors import FormatError, UsageError
from elbocli.files.pickles import read_torch_file
from elbocli.files.reading import file_sha256, reading
from elbocli.files.yaml_text import read_yaml

HUB_OFFSET = 0.1  # DINOv2's hub scales S × S position embeddings by (side + 0.1)/S instead of side/S
TABLES = read_yaml(Path(__file__).with_name("vit.yaml"))


class Tiny(nn.Module):
    """Small random network for tests: uint8 [B, 3, H, W] → (features [B, 64], logits [B, 10])."""

    def __init__(self) -> None:
        super().__init__()
        pairs = pairwise([3, 32, 64, 64])
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, stride=2, padding=1, bias=False) for pair in pairs)
        self.head = nn.Linear(64, 10, bias=False)
        generator = torch.Generator().manual_seed(2023)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / parameter[0].numel()) ** 0.5
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.to(self.head.weight.dtype) / 127.5 - 1
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        features = x.mean((2, 3)) * 8
        return features, self.head(features)


class TimmFeatures(nn.Module):
    """Network of timm, uint8 [B, 3, H, W] → features before its head [B, D], such as the class token; of maps, their mean.

    table: entry of vit.yaml.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, table: Mapping[str, Any]):
        super().__init__()
        self.network = network
        self.size = table["size"]
        self.unit = table.get("unit", False)
        self.register_buffer("mean", torch.tensor(table["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(table["std"]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # Values below 0 or above 255 are not clamped, as in EDM2, CMMD and FDr⁶.
        x = F.interpolate(images.to(self.mean.dtype), (self.size, self.size), mode="bicubic", antialias=True)
        maps = self.network.forward_features((x / 255 - self.mean) / self.std)
        if maps.dim() == 4:
            return maps.mean((2, 3))
        features = self.network.forward_head(maps, pre_logits=not self.unit)
        return F.normalize(features, dim=1) if self.unit else features


def load_timm(name: str, path: Path | None) -> tuple[nn.Module, str]:
    """Return a network of timm with the weights in a file, and their SHA-256 digest. name: a key of vit.yaml.

    The file has the names of timm, DINOv2's hub or OpenAI's CLIP.
    Raises UsageError if timm or `path` is missing, FormatError for weights of another network.
    """
    table = TABLES[name]
    if path is None:
        raise UsageError(f"{name} needs `extractor_weights` FILE: timm's weights {table['timm']}; see docs/extractors.md")
    with reading(f"{path}: needs the extra 'extractors': pip install 'elbocli[extractors]'", kind=UsageError):
        import timm
    tensors = read_torch_file(path)
    options = table.get("options", {})
    wrong = f"{path}: not weights of {name}"
    with torch.device("meta"):
        network: Any = timm.create_model(table["timm"], **options)
    with reading(wrong):
        sizes = {tensor.numel() for tensor in tensors.values()}
    positions = table.get("positions")  # timm would interpolate others, and patches
    if positions and not {positions * network.embed_dim, network.patch_embed.proj.weight.numel()} <= sizes:
        raise FormatError(f"{wrong}: the file lacks position embeddings or patches of this size; see docs/extractors.md")
    with reading(wrong):
        if "img_size" in options and "pos_embed" in tensors:
            tensors["pos_embed"] = fitted_positions(tensors["pos_embed"].float(), network.patch_embed.grid_size[0])
        named = sys.modules[type(network).__module__].checkpoint_filter_fn(tensors, network)
        network.load_state_dict({key: tensor.float() for key, tensor in named.items()}, assign=True)
    return TimmFeatures(network, table).eval().requires_grad_(False), file_sha256(path)


def fitted_positions(positions: Tensor, side: int) -> Tensor:
    """Interpolate position embeddings [1, 1 + S², D] to [1, 1 + side², D], as in DINOv2's hub."""
    token = positions[:, :1]
    grid = positions[:, 1:]
    before = round(grid.shape[1] ** 0.5)
    if before == side:
        return positions
    grid = grid.unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + HUB_OFFSET) / before, mode="bicubic")
    return torch.cat([token, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)

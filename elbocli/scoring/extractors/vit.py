"""Networks of extractors: DINOv2 by timm, and a tiny network for tests."""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.core.pixels import from_levels
from elbocli.errors import FormatError, Parameter, UsageError
from elbocli.files.pickles import contents, read_torch_file
from elbocli.files.reading import file_sha256, reading

HUB_OFFSET = 0.1  # DINOv2's hub scales S × S position embeddings by (side + 0.1)/S instead of side/S
TIMM_NAME = "vit_large_patch14_dinov2.lvd142m"
SIZE = 224  # pixels of a side, to which images are resized
POSITIONS = 1370  # position embeddings in the file of weights


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
        x = from_levels(images, self.head.weight.dtype)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        features = x.mean((2, 3)) * 8
        return features, self.head(features)


class DinoFeatures(nn.Module):
    """DINOv2, uint8 [B, 3, H, W] → the class token, [B, 1024]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # Values below 0 or above 255 are not clamped, as in EDM2.
        x = F.interpolate(images.to(self.mean.dtype), (SIZE, SIZE), mode="bicubic", antialias=True)
        tokens = self.network.forward_features((x / 255 - self.mean) / self.std)
        return self.network.forward_head(tokens, pre_logits=True)


def load_dinov2(path: Path | None) -> tuple[nn.Module, str]:
    """Return DINOv2's ViT-L/14 with the weights in a file, and their SHA-256 digest.

    The file has the names of timm or of DINOv2's hub.
    Raises UsageError if timm or `path` is missing, FormatError for weights of another network.
    """
    if path is None:
        raise UsageError(
            "dinov2-vitl14 needs ", Parameter("extractor_weights"), f" FILE: timm's weights {TIMM_NAME}; see docs/extractors.md"
        )
    with reading(f"{path}: needs the extra 'extractors': pip install 'elbocli[extractors]'", kind=UsageError):
        import timm
    tensors = {str(name): tensor for name, tensor in contents(read_torch_file(path)).items() if isinstance(tensor, Tensor)}
    wrong = f"{path}: not weights of dinov2-vitl14"
    with torch.device("meta"):
        network: Any = timm.create_model(TIMM_NAME, img_size=SIZE)
    with reading(wrong):
        sizes = {tensor.numel() for tensor in tensors.values()}
    # timm would interpolate position embeddings of another size, and patches.
    if not {POSITIONS * network.embed_dim, network.patch_embed.proj.weight.numel()} <= sizes:
        raise FormatError(f"{wrong}: the file lacks position embeddings or patches of this size; see docs/extractors.md")
    with reading(wrong):
        if "pos_embed" in tensors:
            tensors["pos_embed"] = fitted_positions(tensors["pos_embed"].float(), network.patch_embed.grid_size[0])
        named = sys.modules[type(network).__module__].checkpoint_filter_fn(tensors, network)
        network.load_state_dict({key: tensor.float() for key, tensor in named.items()}, assign=True)
    return DinoFeatures(network).eval().requires_grad_(False), file_sha256(path)


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

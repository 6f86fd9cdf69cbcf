"""Vision transformers as extractors: DINOv2 as EDM2 measures by it, and CLIP's image side as CMMD does. timm holds the network.

Both see the whole image, resized to 224 × 224 by torch's antialiased bicubic in float32. What that puts below 0 or above
255 stays: neither EDM2 nor CMMD clamps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.errors import UsageError
from elbocli.files.hashing import file_sha256
from elbocli.nn.extractors import Extractor
from elbocli.nn.extractors.vit_weights import Layout, read_weights

SIZE = 224
HUB_OFFSET = 0.1
"""DINOv2's hub asks for a grid of 16.1 places a side, and gets 16 that lie a little closer than 16 would."""


@dataclass(frozen=True)
class VitShape:
    """A vision transformer of timm's, and what its files hold.

    trained: places a side that the files have positions for; others are made of them as DINOv2's hub does. clip: norms
    and activation of CLIP, else of DINOv2, whose blocks are scaled. embedding: values of a projection after the last
    norm; 0 for none. unit: whether features are made of length 1. mean, std: of levels / 255, that the network was trained
    with; ImageNet's unless given.
    """

    width: int
    depth: int
    heads: int
    patch: int
    trained: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    clip: bool = False
    embedding: int = 0
    unit: bool = False


class Vit(nn.Module):
    """uint8 [B, 3, H, W] → features [B, D]: the class token after the last norm, or its projection."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, shape: VitShape):
        super().__init__()
        self.network, self.unit = network, shape.unit
        self.register_buffer("mean", torch.tensor(shape.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(shape.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.to(self.mean.dtype), (SIZE, SIZE), mode="bicubic", antialias=True)
        features = self.network((x / 255 - self.mean) / self.std)
        return F.normalize(features, dim=1) if self.unit else features


def vit_extractor(name: str, shape: VitShape, path: Path, layouts: tuple[Layout, ...]) -> Extractor:
    """The extractor with the weights in a file. Raises UsageError without timm, FormatError for other weights."""
    network = _network(shape, path)
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    wanted["pos_embed"] = (1, 1 + shape.trained**2, shape.width)
    found = read_weights(path, name, wanted, layouts)
    found["pos_embed"] = fitted_positions(found["pos_embed"], SIZE // shape.patch)
    network.load_state_dict(found, assign=True)
    module = Vit(network, shape).eval().requires_grad_(False)
    return Extractor(name, module, file_sha256(path), channels=3)


def fitted_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings [1, 1 + S², D] for side × side places: [1, 1 + side², D].

    As DINOv2's hub does it: bicubic, without antialiasing, places side + 0.1 to S rather than side to S.
    """
    token, grid = positions[:, :1], positions[:, 1:]
    before = round(grid.shape[1] ** 0.5)
    if before == side:
        return positions
    grid = grid.unflatten(1, (before, before)).permute(0, 3, 1, 2)
    factor = (side + HUB_OFFSET) / before
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([token, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def _network(shape: VitShape, path: Path) -> nn.Module:
    """The network without memory for its weights."""
    try:
        from timm.layers import QuickGELU
        from timm.models.vision_transformer import VisionTransformer
    except (ImportError, RuntimeError) as error:
        why = " ".join(str(error).split())[:120]
        raise UsageError(
            f"{path}: this network needs the extra 'extractors': pip install 'elbocli[extractors]' ({why})"
        ) from error
    own: dict[str, Any] = {"init_values": 1e-5, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    if shape.clip:
        own = {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5), "act_layer": QuickGELU}
    with torch.device("meta"):
        network = VisionTransformer(
            img_size=SIZE,
            patch_size=shape.patch,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            num_classes=0,
            global_pool="token",
            weight_init="skip",
            **own,
        )
        if shape.embedding:
            network.head = nn.Linear(shape.width, shape.embedding, bias=False)
    return network

"""Networks of extractors: DINOv2 as in EDM2, CLIP's image encoder as in CMMD, and a tiny network for tests."""

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

SIZE = 224
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


class Vit(nn.Module):
    """Vision transformer, uint8 [B, 3, H, W] → class token [B, D]; for CLIP, projected and scaled to norm 1.

    table: entry of vit.yaml.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, table: Mapping[str, Any]):
        super().__init__()
        self.network, self.unit = network, "embedding" in table
        self.register_buffer("mean", torch.tensor(table["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(table["std"]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # Values below 0 or above 255 are not clamped, as in EDM2 and CMMD.
        x = F.interpolate(images.to(self.mean.dtype), (SIZE, SIZE), mode="bicubic", antialias=True)
        features = self.network((x / 255 - self.mean) / self.std)
        return F.normalize(features, dim=1) if self.unit else features


def load_vit(name: str, path: Path) -> tuple[nn.Module, str]:
    """Return a vision transformer with the weights in a file, and their SHA-256 digest. name: a key of vit.yaml.

    The file has the names of timm, DINOv2's hub or OpenAI's CLIP.
    Raises UsageError if timm is missing, FormatError for weights of another network.
    """
    with reading(f"{path}: needs the extra 'extractors': pip install 'elbocli[extractors]'", kind=UsageError):
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn
    table, tensors, wrong = TABLES[name], read_torch_file(path), f"{path}: not weights of {name}"
    with torch.device("meta"):
        network: Any = timm.create_model(table["timm"], num_classes=table.get("embedding", 0), img_size=SIZE, weight_init="skip")
    positions = (1 + table["trained"] ** 2) * network.embed_dim
    with reading(wrong):
        sizes = {tensor.numel() for tensor in tensors.values()}
    if not {positions, network.patch_embed.proj.weight.numel()} <= sizes:  # timm would interpolate others
        raise FormatError(f"{wrong}: the file lacks position embeddings or patches of this size; see docs/extractors.md")
    with reading(wrong):
        if "pos_embed" in tensors:
            tensors["pos_embed"] = fitted_positions(tensors["pos_embed"].float(), network.patch_embed.grid_size[0])
        weights = {key: tensor.float() for key, tensor in checkpoint_filter_fn(tensors, network).items()}
        network.load_state_dict(weights, assign=True)
    return Vit(network, table).eval().requires_grad_(False), file_sha256(path)


def fitted_positions(positions: Tensor, side: int) -> Tensor:
    """Interpolate position embeddings [1, 1 + S², D] to [1, 1 + side², D], as in DINOv2's hub."""
    token, grid = positions[:, :1], positions[:, 1:]
    before = round(grid.shape[1] ** 0.5)
    if before == side:
        return positions
    grid = grid.unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + HUB_OFFSET) / before, mode="bicubic")
    return torch.cat([token, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)

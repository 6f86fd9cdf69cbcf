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

    Raises UsageError if timm is missing, FormatError for weights of another network.
    """
    with reading(f"{path}: needs the extra 'extractors': pip install 'elbocli[extractors]'", kind=UsageError):
        import timm
    table = TABLES[name]
    with torch.device("meta"):
        network: Any = timm.create_model(table["timm"], num_classes=0, img_size=SIZE, weight_init="skip")
        if "embedding" in table:
            network.head = nn.Linear(network.embed_dim, table["embedding"], bias=False)
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    wanted["pos_embed"] = (1, 1 + table["trained"] ** 2, network.embed_dim)
    weights = read_weights(path, name, wanted, table["files"])
    weights["pos_embed"] = fitted_positions(weights["pos_embed"], network.patch_embed.grid_size[0])
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


def read_weights(path: Path, name: str, wanted: Mapping[str, tuple[int, ...]], layouts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a network's tensors from a file, float32.

    wanted: tensor name → shape. layouts: program → layout of its weight files, as in vit.yaml. name: the network's.
    Raises FormatError if the file doesn't fit the network.
    """
    found, wrong = read_torch_file(path), f"{path}: not weights of {name}"
    layout = next((each for each in layouts.values() if isinstance(found, dict) and each["mark"] in found), None)
    if layout is None:
        mark = next(iter(layouts.values()))["mark"]
        raise FormatError(f"{wrong}: it holds no tensor {mark}; docs/extractors.md lists the files that do")
    given: dict[str, Tensor] = {}
    for key, value in found.items():
        if isinstance(value, Tensor) and not key.startswith(tuple(layout["ignored"])):
            for theirs, own in layout["names"].items():
                key = key.replace(theirs, own)
            given[key] = value.float()
    weights: dict[str, Tensor] = {}
    for key, shape in wanted.items():
        parts = [key] if key in given else [key.replace(".qkv.", f".{part}.") for part in "qkv"]
        with reading(f"{wrong}: {key}"):
            value = torch.cat([given.pop(part) for part in parts])
            weights[key] = (value.T if key in layout.get("transposed", ()) else value).reshape(shape).contiguous()
    if given:
        raise FormatError(f"{wrong}: it also holds tensor {min(given)}, which {name} lacks; see docs/extractors.md")
    return weights

"""Vision transformers as extractors: DINOv2 as EDM2 measures by it, and CLIP's image side as CMMD does. timm holds the network.

Both see the whole image, resized to 224 × 224 by torch's antialiased bicubic in float32. What that puts below 0 or above
255 stays: neither EDM2 nor CMMD clamps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.errors import FormatError, UsageError
from elbocli.files.reading import file_sha256, one_line, reading
from elbocli.files.recognise import begins_like_tensors
from elbocli.files.tensor_files import load, load_tensors
from elbocli.nn.extractors import Extractor

SIZE = 224
HUB_OFFSET = 0.1
"""DINOv2's hub asks for a grid of 16.1 places a side, and gets 16 that lie a little closer than 16 would."""


class VitShape(NamedTuple):
    """A vision transformer of timm's, and what its files hold.

    trained: places a side that the files have positions for; others are made of them as DINOv2's hub does. mean, std: of
    levels / 255, that the network was trained with; ImageNet's unless given. embedding: values of CLIP's projection after
    the last norm, whose features have length 1; 0 for DINOv2, whose blocks are scaled.
    """

    width: int
    depth: int
    heads: int
    patch: int
    trained: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    embedding: int = 0


class Vit(nn.Module):
    """uint8 [B, 3, H, W] → features [B, D]: the class token after the last norm, or its projection."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, shape: VitShape):
        super().__init__()
        self.network, self.unit = network, shape.embedding > 0
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
    weights = read_weights(path, name, wanted, layouts)
    weights["pos_embed"] = fitted_positions(weights["pos_embed"], SIZE // shape.patch)
    network.load_state_dict(weights, assign=True)
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
        raise UsageError(
            f"{path}: this network needs the extra 'extractors': pip install 'elbocli[extractors]' ({one_line(error)})"
        ) from error
    own: dict[str, Any] = {"init_values": 1e-5, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    if shape.embedding:
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


# Weights in files of several programs, by the names that timm's network has.


class Layout(NamedTuple):
    """Names by which a program writes such a network.

    mark: a name by which its files are told. parts: parts of names → the network's own, replaced one after the other; q, k
    and v may be apart. ignored: how the names of tensors begin that are of no use here; any other name that isn't used means
    another network. transposed: the network's tensors that are the other way round there.
    """

    mark: str
    parts: Mapping[str, str]
    ignored: tuple[str, ...]
    transposed: tuple[str, ...] = ()


DINOV2_HUB = Layout("blocks.0.attn.qkv.weight", {}, ("mask_token",))
"""Names of DINOv2's hub, and of timm."""
DINOV2_TRANSFORMERS = Layout(
    "embeddings.position_embeddings",
    {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer.": "blocks.",
        "attention.attention.query": "attn.q",
        "attention.attention.key": "attn.k",
        "attention.attention.value": "attn.v",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm": "norm",
    },
    ("embeddings.mask_token",),
)
"""Names of transformers' Dinov2Model."""
CLIP_OPENAI = Layout(
    "visual.class_embedding",
    {
        "visual.class_embedding": "cls_token",
        "visual.positional_embedding": "pos_embed",
        "visual.conv1": "patch_embed.proj",
        "visual.ln_pre": "norm_pre",
        "visual.ln_post": "norm",
        "visual.proj": "head.weight",
        "visual.transformer.resblocks.": "blocks.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    },
    (
        "transformer.",
        "token_embedding.",
        "positional_embedding",
        "ln_final.",
        "text_projection",
        "logit_scale",
        "attn_mask",
    ),
    transposed=("head.weight",),
)
"""Names of OpenAI's CLIP, and of open_clip."""
CLIP_TRANSFORMERS = Layout(
    "vision_model.embeddings.class_embedding",
    {
        "vision_model.embeddings.class_embedding": "cls_token",
        "vision_model.embeddings.position_embedding.weight": "pos_embed",
        "vision_model.embeddings.patch_embedding": "patch_embed.proj",
        "vision_model.pre_layrnorm": "norm_pre",
        "vision_model.post_layernorm": "norm",
        "visual_projection": "head",
        "vision_model.encoder.layers.": "blocks.",
        "layer_norm": "norm",
        "self_attn.q_proj": "attn.q",
        "self_attn.k_proj": "attn.k",
        "self_attn.v_proj": "attn.v",
        "self_attn.out_proj": "attn.proj",
    },
    ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids"),
)
"""Names of transformers' CLIPModel, and of its CLIPVisionModelWithProjection."""


def read_weights(
    path: Path, name: str, wanted: Mapping[str, tuple[int, ...]], layouts: tuple[Layout, ...]
) -> dict[str, Tensor]:
    """The network's tensors in float32, by its own names. wanted: their shapes. Raises FormatError; runs no code from the file."""
    with reading(path):
        found = load(path) if begins_like_tensors(path) else load_tensors(path)
    wrong = f"{path}: not weights of {name}"
    layout = next((each for each in layouts if isinstance(found, dict) and each.mark in found), None)
    if layout is None:
        raise FormatError(f"{wrong}: it holds no {layouts[0].mark}; docs/extractors.md says which files do")
    given: dict[str, Tensor] = {}
    for key, value in found.items():
        if isinstance(value, Tensor) and not key.startswith(layout.ignored):
            for theirs, own in layout.parts.items():
                key = key.replace(theirs, own)
            given[key] = value.float()
    weights: dict[str, Tensor] = {}
    for key, shape in wanted.items():
        parts = [key] if key in given else [key.replace(".qkv.", f".{part}.") for part in "qkv" if ".qkv." in key]
        if not parts or not given.keys() >= set(parts):
            raise FormatError(f"{wrong}: it holds no {key}; another size of the network?")
        values = [given.pop(part) for part in parts]
        value = values[0] if len(values) == 1 else torch.cat(values)
        with reading(f"{wrong}: {key}"):
            weights[key] = (value.T if key in layout.transposed else value).reshape(shape).contiguous()
    if given:
        raise FormatError(f"{wrong}: it also holds {min(given)}, which is of another network")
    return weights

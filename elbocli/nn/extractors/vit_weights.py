"""Weights of vision transformers in files of several programs, by the names that timm's network has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from elbocli.errors import FormatError
from elbocli.files.reading import reading
from elbocli.files.recognise import begins_like_tensors
from elbocli.files.tensor_files import load, load_tensors

BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)")


@dataclass(frozen=True)
class Layout:
    """Names by which a program writes such a network.

    mark: a name by which its files are told. blocks: before a block's number. modules: the network's tensors and modules
    outside of blocks → theirs; block: those of a block → theirs, q, k and v where they are apart. Those that aren't
    there have one name in both. transposed: the network's tensors that are the other way round there. ignored: how the
    names of tensors begin that are of no use here; any other that isn't used means another network.
    """

    mark: str
    blocks: str = "blocks."
    modules: Mapping[str, str] = field(default_factory=dict)
    block: Mapping[str, str | tuple[str, str, str]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    def sources(self, name: str) -> list[str]:
        """Their names of what makes up one of the network's tensors, in order."""
        inside = BLOCK.fullmatch(name)
        if inside is None:
            module, dot, leaf = name.rpartition(".")
            return [self.modules[name]] if name in self.modules else [self.modules.get(module, module) + dot + leaf]
        number, module, leaf = inside.groups()
        whole = self.block.get(f"{module}.{leaf}")
        theirs = whole or self.block.get(module, module)
        each = (theirs,) if isinstance(theirs, str) else theirs
        return [f"{self.blocks}{number}.{one}{'' if whole else self._leaf(one, leaf)}" for one in each]

    @staticmethod
    def _leaf(module: str, leaf: str) -> str:
        """The last part of a name; MultiheadAttention's own projection has it after an underscore."""
        return f"_{leaf}" if module.endswith("in_proj") else f".{leaf}"


DINOV2_HUB = Layout("blocks.0.attn.qkv.weight", ignored=("mask_token",))
"""Names of DINOv2's hub, and of timm."""
DINOV2_TRANSFORMERS = Layout(
    "embeddings.position_embeddings",
    "encoder.layer.",
    {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    },
    {
        "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    },
    ignored=("embeddings.mask_token",),
)
"""Names of transformers' Dinov2Model."""
CLIP_OPENAI = Layout(
    "visual.class_embedding",
    "visual.transformer.resblocks.",
    {
        "cls_token": "visual.class_embedding",
        "pos_embed": "visual.positional_embedding",
        "patch_embed.proj": "visual.conv1",
        "norm_pre": "visual.ln_pre",
        "norm": "visual.ln_post",
        "head.weight": "visual.proj",
    },
    {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv": "attn.in_proj",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    },
    transposed=frozenset({"head.weight"}),
    ignored=(
        "transformer.",
        "token_embedding.",
        "positional_embedding",
        "ln_final.",
        "text_projection",
        "logit_scale",
        "attn_mask",
    ),
)
"""Names of OpenAI's CLIP, and of open_clip."""
CLIP_TRANSFORMERS = Layout(
    "vision_model.embeddings.class_embedding",
    "vision_model.encoder.layers.",
    {
        "cls_token": "vision_model.embeddings.class_embedding",
        "pos_embed": "vision_model.embeddings.position_embedding.weight",
        "patch_embed.proj": "vision_model.embeddings.patch_embedding",
        "norm_pre": "vision_model.pre_layrnorm",
        "norm": "vision_model.post_layernorm",
        "head": "visual_projection",
    },
    {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": "self_attn.out_proj",
    },
    ignored=("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids"),
)
"""Names of transformers' CLIPModel, and of its CLIPVisionModelWithProjection."""


def read_weights(
    path: Path, name: str, wanted: Mapping[str, tuple[int, ...]], layouts: tuple[Layout, ...]
) -> dict[str, Tensor]:
    """The network's tensors in float32, by its own names. wanted: their shapes. Raises FormatError; runs no code from the file."""
    found = _tensors(path)
    layout = next((each for each in layouts if each.mark in found), None)
    if layout is None:
        marks = " or ".join(each.mark for each in layouts)
        raise FormatError(f"{path}: not weights of {name}: it holds no {marks}; docs/extractors.md says which files do")
    read, used = dict[str, Tensor](), set[str]()
    for key, shape in wanted.items():
        sources = layout.sources(key)
        for source in sources:
            if not isinstance(found.get(source), Tensor):
                raise FormatError(f"{path}: not weights of {name}: it holds no {source}; another size of the network?")
        used.update(sources)
        parts = [found[source].float() for source in sources]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        value = value.T if key in layout.transposed else value
        if _sides(value.shape) != _sides(shape):
            raise FormatError(
                f"{path}: not weights of {name}: {sources[0]} gives {list(value.shape)}, expected {list(shape)}; another "
                "size of the network?"
            )
        read[key] = value.reshape(shape).contiguous()
    more = sorted(key for key in found.keys() - used if not key.startswith(layout.ignored))
    if more:
        raise FormatError(f"{path}: not weights of {name}: it also holds {more[0]}, which is of another network")
    return read


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of safetensors, or of torch's. Raises FormatError."""
    with reading(path):
        safe = begins_like_tensors(path)
    found = load(path) if safe else load_tensors(path)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise FormatError(f"{path}: not weights: its tensors have no names")
    return found


def _sides(shape: tuple[int, ...]) -> list[int]:
    """A shape without the ones before it: a class token is written as [D], too."""
    sides = list(shape)
    while sides[:1] == [1]:
        sides.pop(0)
    return sides

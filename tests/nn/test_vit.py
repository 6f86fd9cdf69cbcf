"""DINOv2 and CLIP as extractors: the networks as their authors state them, from files of every program that writes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tf1

from elbocli.errors import FormatError, UsageError
from elbocli.nn.extractors import Extractor, make_extractor, vit
from elbocli.nn.extractors.vit import Vit, VitShape, fitted_positions, vit_extractor

DINO = VitShape(width=32, depth=2, heads=4, patch=14, trained=37)
CLIP = VitShape(width=32, depth=2, heads=4, patch=32, trained=7, embedding=24)
Weights = dict[str, Tensor]


def made(shape: VitShape, path: Path) -> Extractor:
    pytest.importorskip("timm")
    return vit_extractor("a-vit", path, shape)


def images(count: int = 2, size: int = 40) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def drawn(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Random, and such that activations keep their size; norms and scales are about 1, of either sign where that counts."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith(
            ("norm1.weight", "norm2.weight", "norm.weight", "ln_1.weight", "ln_2.weight", "post.weight", "pre.weight")
        ):
            found[name] = 1 + 0.2 * value
        elif len(shape) > 1 and "pos" not in name and "token" not in name:
            found[name] = value / math.sqrt(math.prod(shape[1:]))
        else:
            found[name] = 0.5 * value
    return found


def hub_weights(shape: VitShape) -> Weights:
    """Tensors by the names of DINOv2's hub."""
    d = shape.width
    block = {"norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,)}
    block |= {"attn.proj.weight": (d, d), "attn.proj.bias": (d,), "ls1.gamma": (d,), "norm2.weight": (d,)}
    block |= {"norm2.bias": (d,), "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,)}
    block |= {"mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,), "ls2.gamma": (d,)}
    whole = {"cls_token": (1, 1, d), "pos_embed": (1, 1 + shape.trained**2, d), "mask_token": (1, d)}
    whole |= {"patch_embed.proj.weight": (d, 3, shape.patch, shape.patch), "patch_embed.proj.bias": (d,)}
    whole |= {f"blocks.{n}.{key}": sides for n in range(shape.depth) for key, sides in block.items()}
    return drawn(whole | {"norm.weight": (d,), "norm.bias": (d,)})


def openai_weights(shape: VitShape) -> Weights:
    """Tensors by the names of OpenAI's CLIP, with some of the text side."""
    d = shape.width
    block = {"ln_1.weight": (d,), "ln_1.bias": (d,), "attn.in_proj_weight": (3 * d, d), "attn.in_proj_bias": (3 * d,)}
    block |= {"attn.out_proj.weight": (d, d), "attn.out_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,)}
    block |= {"mlp.c_fc.weight": (4 * d, d), "mlp.c_fc.bias": (4 * d,)}
    block |= {"mlp.c_proj.weight": (d, 4 * d), "mlp.c_proj.bias": (d,)}
    whole = {"class_embedding": (d,), "positional_embedding": (1 + shape.trained**2, d)}
    whole |= {"conv1.weight": (d, 3, shape.patch, shape.patch), "proj": (d, shape.embedding)}
    whole |= {f"ln_{place}.{leaf}": (d,) for place in ("pre", "post") for leaf in ("weight", "bias")}
    whole |= {f"transformer.resblocks.{n}.{key}": sides for n in range(shape.depth) for key, sides in block.items()}
    text = {"positional_embedding": (77, 8), "text_projection": (8, 24), "logit_scale": (1,), "ln_final.weight": (8,)}
    return drawn({f"visual.{key}": sides for key, sides in whole.items()} | text)


def by_transformers_dinov2(hub: Weights) -> Weights:
    """The same tensors by the names of transformers."""
    words = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "mask_token": "embeddings.mask_token",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "encoder.layer.",
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    found = {}
    for name, value in hub.items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        name = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        if ".attn.qkv." in name:
            for part, one in zip(("query", "key", "value"), value.chunk(3)):
                found[name.replace("attn.qkv", f"attention.attention.{part}")] = one.clone()
        else:
            found[name] = value
    return found


def by_transformers_clip(openai: Weights) -> Weights:
    """The same tensors by the names of transformers."""
    found = {
        "logit_scale": torch.ones(1),
        "text_model.x": torch.ones(2),
        "vision_model.embeddings.position_ids": torch.arange(50),
    }
    words = {
        "transformer.resblocks": "encoder.layers",
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "c_fc": "fc1",
        "c_proj": "fc2",
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "conv1": "embeddings.patch_embedding",
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    for name, value in openai.items():
        tower, _, name = name.partition(".")
        if tower != "visual":
            continue
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        if "in_proj" in name:
            for part, one in zip("qkv", value.chunk(3)):
                found["vision_model." + name.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = one.clone()
        elif name == "proj":
            found["visual_projection.weight"] = value.T.contiguous()
        else:
            found[f"vision_model.{name}"] = value
    return found


def pixels(levels: Tensor) -> Tensor:
    """Images [B, 3, 224, 224] as the network is to see them, in float64."""
    resized = F.interpolate(levels.double(), (224, 224), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (DINO.mean, DINO.std))
    return (resized / 255 - mean) / std


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(x: Tensor, qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Softmax of q·k / √d over k, head by head."""
    q, k, v = (x @ qkv.T + bias).chunk(3, -1)
    size = q.shape[-1] // heads
    out = []
    for start in range(0, q.shape[-1], size):
        a, b, c = (each[..., start : start + size] for each in (q, k, v))
        out.append((a @ b.mT / math.sqrt(size)).softmax(-1) @ c)
    return torch.cat(out, -1)


def cubic(x: float) -> float:
    """Keys' cubic with a = −0.75."""
    x, a = abs(x), -0.75
    return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def hub_rows(before: int, side: int) -> Tensor:
    """[side, before]: a place of the hub's, made of those before; edges are repeated."""
    rows = torch.zeros(side, before, dtype=torch.float64)
    for i in range(side):
        place = (i + 0.5) * before / (side + 0.1) - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            rows[i, min(max(j, 0), before - 1)] += cubic(place - j)
    return rows


def dinov2(levels: Tensor, weights: Weights, shape: VitShape) -> Tensor:
    """The class token, by the formula of DINOv2's authors, in float64."""
    w = {name: value.double() for name, value in weights.items()}
    side = 224 // shape.patch
    grid = w["pos_embed"][0, 1:].reshape(shape.trained, shape.trained, -1)
    rows = hub_rows(shape.trained, side)
    places = torch.einsum("ia,jb,abd->ijd", rows, rows, grid).reshape(side**2, -1)
    patches = F.conv2d(pixels(levels), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=shape.patch)
    x = patches.flatten(2).mT + places
    x = torch.cat([(w["cls_token"][0] + w["pos_embed"][0, :1]).expand(len(x), 1, -1), x], 1)
    for n in range(shape.depth):
        b = {name.removeprefix(f"blocks.{n}."): value for name, value in w.items()}
        mixed = attention(norm(x, b, "norm1", 1e-6), b["attn.qkv.weight"], b["attn.qkv.bias"], shape.heads)
        x = x + b["ls1.gamma"] * (mixed @ b["attn.proj.weight"].T + b["attn.proj.bias"])
        wide = norm(x, b, "norm2", 1e-6) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        x = x + b["ls2.gamma"] * (wide @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    return norm(x, w, "norm", 1e-6)[:, 0]


def clip(levels: Tensor, weights: Weights, shape: VitShape) -> Tensor:
    """The image's embedding of length 1, by the formula of CLIP's authors, in float64."""
    w = {name.removeprefix("visual."): value.double() for name, value in weights.items() if name.startswith("visual.")}
    patches = F.conv2d(pixels(levels), w["conv1.weight"], stride=shape.patch).flatten(2).mT
    x = torch.cat([w["class_embedding"].expand(len(patches), 1, -1), patches], 1) + w["positional_embedding"]
    x = norm(x, w, "ln_pre", 1e-5)
    for n in range(shape.depth):
        b = {name.removeprefix(f"transformer.resblocks.{n}."): value for name, value in w.items()}
        mixed = attention(norm(x, b, "ln_1", 1e-5), b["attn.in_proj_weight"], b["attn.in_proj_bias"], shape.heads)
        x = x + mixed @ b["attn.out_proj.weight"].T + b["attn.out_proj.bias"]
        wide = norm(x, b, "ln_2", 1e-5) @ b["mlp.c_fc.weight"].T + b["mlp.c_fc.bias"]
        x = x + (wide * (1.702 * wide).sigmoid()) @ b["mlp.c_proj.weight"].T + b["mlp.c_proj.bias"]
    embedding = norm(x[:, 0], w, "ln_post", 1e-5) @ w["proj"]
    return embedding / embedding.square().sum(1, keepdim=True).sqrt()


def close(found: Tensor, expected: Tensor) -> bool:
    """Within 1e-5 of their size."""
    return float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["hub.pth", "hub.safetensors", "transformers.safetensors"])
def test_dinov2_is_its_authors_formula_from_any_file(kind: str, tmp_path: Path) -> None:
    weights, path = hub_weights(DINO), tmp_path / kind
    written = by_transformers_dinov2(weights) if "transformers" in kind else weights
    torch.save(written, path) if path.suffix == ".pth" else save_file(written, path)
    features, logits = made(DINO, path)(images())
    assert logits is None and features.dtype == torch.float32 and features.shape == (2, 32)
    assert close(features, dinov2(images(), weights, DINO))


@pytest.mark.parametrize("kind", ["openai.pt", "openai.safetensors", "transformers.safetensors", "half.safetensors"])
def test_clip_is_its_authors_formula_from_any_file(kind: str, tmp_path: Path) -> None:
    weights, path = openai_weights(CLIP), tmp_path / kind
    if "half" in kind:
        weights = {name: value.half().float() for name, value in weights.items()}
    written = by_transformers_clip(weights) if "transformers" in kind else weights
    written = {name: value.half() for name, value in written.items()} if "half" in kind else written
    torch.save(written, path) if path.suffix == ".pt" else save_file(written, path)
    features = made(CLIP, path)(images())[0]
    assert close(features, clip(images(), weights, CLIP))
    assert torch.allclose(features.norm(dim=1), torch.ones(2))


def test_positions_are_as_dinov2s_hub_fits_them_and_not_as_timm_does() -> None:
    positions = torch.randn(1, 1 + 37**2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = hub_rows(37, 16)
    expected = torch.einsum("ia,jb,abd->ijd", rows, rows, positions[0, 1:].reshape(37, 37, 8)).reshape(256, 8)
    found = fitted_positions(positions, 16)
    assert torch.equal(found[:, 0], positions[:, 0]) and torch.allclose(found[0, 1:], expected, atol=1e-9)
    assert fitted_positions(positions, 37) is positions
    smooth = F.interpolate(positions[:, 1:].mT.reshape(1, 8, 37, 37), (16, 16), mode="bicubic", antialias=True)
    assert (smooth.flatten(2).mT - found[:, 1:]).abs().max() > 0.5


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (300, 500)])
def test_images_are_resized_by_antialiased_bicubic_and_not_as_tensorflow_1_does(size: tuple[int, int]) -> None:
    """Noise, as its resize overshoots: levels below 0 and above 255 stay."""
    shown = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given: list[Tensor] = []
    network = torch.nn.Identity()
    network.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    Vit(network, DINO)(shown)
    mean, std = (torch.tensor(each)[:, None, None] for each in (DINO.mean, DINO.std))
    levels, exact = ((each * std + mean) * 255 for each in (given[0], pixels(shown)))
    assert (levels - exact).abs().max() < 5e-3, "float32 is as near to float64 as torch's own resize"
    assert (levels.min() < -1 and levels.max() > 256) or min(size) > 224
    other = tf1(shown.float(), (224, 224), align_corners=False)
    assert (levels - other).abs().mean() > 3


def test_other_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    weights = hub_weights(DINO)
    wrong = {
        "blocks.1.norm1.weight": {k: v for k, v in weights.items() if "blocks.1" not in k},
        r"norm.weight": weights | {"norm.weight": torch.ones(31)},
        r"pos_embed": weights | {"pos_embed": torch.ones(1, 257, 32)},
        "it also holds register_tokens, which is of another": weights | {"register_tokens": torch.ones(1, 4, 32)},
        "it also holds blocks.2.norm1.bias": weights | {"blocks.2.norm1.bias": torch.ones(32)},
        "it holds no blocks.0.attn.qkv.weight": {"a": torch.ones(1)},
    }
    for k, (words, state) in enumerate(wrong.items()):
        save_file(state, tmp_path / f"{k}.safetensors")
        with pytest.raises(FormatError, match=rf"{k}.safetensors: not weights of a-vit: .*{words}"):
            made(DINO, tmp_path / f"{k}.safetensors")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(FormatError, match="not weights"):
        made(DINO, tmp_path / "list.pth")
    save_file(weights, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-9])
    with pytest.raises(FormatError, match=r"cut\.safetensors"):
        made(DINO, tmp_path / "cut.safetensors")
    with pytest.raises(FormatError, match="could not read"):
        made(DINO, tmp_path / "none.pth")


@pytest.mark.parametrize(("name", "parameters"), [("dinov2-vitl14", 304_367_616), ("clip-vitb32", 87_849_216)])
def test_the_declared_networks_are_as_large_as_the_published_ones(
    name: str, parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DINOv2's file also holds a mask token of 1024 values."""
    pytest.importorskip("timm")
    seen: dict[str, tuple[int, ...]] = {}

    class Seen(Exception):
        pass

    def look(path: Path, name: str, wanted: dict[str, tuple[int, ...]], layouts: dict[str, Any]) -> Weights:
        seen.update(wanted)
        raise Seen

    monkeypatch.setattr(vit, "read_weights", look)
    with pytest.raises(Seen):
        make_extractor(name, tmp_path / "x", "cpu")
    assert sum(map(math.prod, seen.values())) == parameters
    with pytest.raises(UsageError, match=f"{name} needs --extractor-weights FILE"):
        make_extractor(name, None, "cpu")


def test_without_timm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm.models.vision_transformer", None)
    with pytest.raises(UsageError, match=r"pip install 'elbocli\[extractors\]'"):
        vit_extractor("a-vit", tmp_path / "x", DINO)


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    save_file(hub_weights(DINO._replace(depth=1)), tmp_path / "w.safetensors")
    extractor = made(DINO._replace(depth=1), tmp_path / "w.safetensors")
    shown = images(3)
    alone = np.concatenate([extractor(shown[k : k + 1])[0].numpy() for k in range(3)])
    assert np.abs(extractor(shown)[0].numpy() - alone).max() < 1e-5

"""Extractors give the features of their authors' formulas or programs, from files of every program that writes the weights."""

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import load
from peers.parts import draw
from safetensors.torch import save_file
from shared_fixtures import DEPTH, HEADS, WIDTH
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.networks import count_parameters
from elbocli.scoring.extractors import Extractor, make_extractor, vit
from elbocli.scoring.extractors.vit import load_dinov2

RECIPE = Path(__file__).parent.parent.parent / "examples/extractors/export_timm.py"
Weights = dict[str, Tensor]


def levels_of(count: int, size: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def close(found: Tensor, expected: Tensor) -> bool:
    """Within 1e-5 of their size."""
    return float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_tiny_is_the_same_everywhere():
    extractor = make_extractor("elbo-tiny", None, "cpu")
    weights = b"".join(value.numpy().tobytes() for value in extractor.module.state_dict().values())
    assert extractor.weights_sha256 == hashlib.sha256(weights).hexdigest()
    grey = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    features, logits = extractor(grey)
    assert features.shape == (3, 64) and logits is not None and logits.shape == (3, 10)
    assert torch.equal(features, extractor(grey.expand(-1, 3, -1, -1))[0])


@pytest.mark.long
def test_inceptions_features_are_torch_fidelitys_up_to_rounding(inception_weights, photos):
    """Batch norm folded, channels last: within 1e-4, relative to the features' size."""
    ours = make_extractor("inception-v3-compat", inception_weights, "cpu")
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    images = torch.from_numpy(photos[:3]).permute(0, 3, 1, 2)
    for mine, other in zip(ours(images), theirs(images)):
        assert mine is not None and mine.std() > 1e-3
        assert (mine - other).norm() < 1e-4 * (other - other.mean(0)).norm()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ours.module.modules())


@pytest.mark.long
def test_the_recipe_makes_an_extractor_of_a_network_of_timms(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("test_vit").eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(sys, "argv", ["", "test_vit", "24", str(tmp_path / "out.pt2"), str(tmp_path / "w.pth")])
    load(RECIPE)
    config = timm.data.resolve_model_data_config(network)
    size = config["input_size"][1:]
    mode = config["interpolation"]
    x = F.interpolate(levels_of(3, 24).float(), size, mode=mode, antialias=True)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    network.reset_classifier(0)
    with torch.no_grad():
        expected = network((x / 255 - mean) / std)
        assert close(make_extractor(str(tmp_path / "out.pt2"), None, "cpu")(levels_of(3, 24))[0], expected)


@pytest.mark.parametrize(
    ("name", "file", "word"),
    [
        ("inception-v3-compat", "other.pth", "not weights"),
        ("dinov2-vitl14", "other.pth", "other.pth"),
        ("inception-v4", None, "inception-v3-compat"),
        ("elbo-tiny", "other.pth", "weights"),
        ("x.pt2", "other.pth", "weights"),
        ("dinov2-vitl14", None, "extractor_weights"),
    ],
)
def test_names_and_weights_that_do_not_fit_are_refused(name, file, word, tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises((FormatError, UsageError), match=word):
        make_extractor(name, file and tmp_path / file, "cpu")


def test_an_extractor_that_returns_something_else_is_refused():
    with pytest.raises(FormatError):
        Extractor("odd", torch.nn.Identity(), "")(levels_of(2, 8))
    with pytest.raises(DataError):
        Extractor("odd", torch.nn.Linear(3, 3), "")(levels_of(2, 8))


# DINOv2 by its authors' formula; tensors by the names of its hub, which are timm's

DINO = "dinov2-vitl14"


def declared() -> Any:
    """timm's network, at the size at which it was trained."""
    return pytest.importorskip("timm").create_model(vit.TIMM_NAME)


def drawn() -> Weights:
    """Random weights by timm's names, which are the hub's."""
    return draw(declared).state_dict()


def pixels(levels: Tensor) -> Tensor:
    """Images [B, 3, 224, 224] as the network is to see them, in float64: nothing is clamped."""
    resized = F.interpolate(levels.double(), (224, 224), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (
        torch.tensor(each, dtype=torch.float64)[:, None, None] for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    return (resized / 255 - mean) / std


def cubic(x: float) -> float:
    """Keys' cubic with a = −0.75."""
    x = abs(x)
    a = -0.75
    return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def hub_rows(before: int, side: int) -> Tensor:
    """[side, before]: a place of the hub's, made of those before; edges are repeated."""
    rows = torch.zeros(side, before, dtype=torch.float64)
    for i in range(side):
        place = (i + 0.5) * before / (side + 0.1) - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            rows[i, min(max(j, 0), before - 1)] += cubic(place - j)
    return rows


def expected(levels: Tensor, weights: Weights) -> Tensor:
    """DINOv2's class token, in float64."""
    w = {name: value.double() for name, value in weights.items()}
    side = 224 // 14
    trained = math.isqrt(len(w["pos_embed"][0]) - 1)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def layer(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    token = w["pos_embed"][0, :1]
    places = w["pos_embed"][0, 1:]
    if side != trained:
        rows = hub_rows(trained, side)
        grid = places.reshape(trained, trained, -1)
        places = torch.einsum("ia,jb,abd->ijd", rows, rows, grid).reshape(side**2, -1)
    bias = w.get("patch_embed.proj.bias")
    patches = F.conv2d(pixels(levels), w["patch_embed.proj.weight"], bias, stride=14).flatten(2).mT
    x = torch.cat([(w["cls_token"][0] + token).expand(len(levels), 1, -1), patches + places], 1)
    for n in range(DEPTH):
        qkv = layer(norm(x, f"blocks.{n}.norm1"), f"blocks.{n}.attn.qkv").unflatten(2, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + w.get(f"blocks.{n}.ls1.gamma", 1) * layer(mixed, f"blocks.{n}.attn.proj")
        h = layer(norm(x, f"blocks.{n}.norm2"), f"blocks.{n}.mlp.fc1")
        h = F.gelu(h)
        x = x + w.get(f"blocks.{n}.ls2.gamma", 1) * layer(h, f"blocks.{n}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def test_dinov2_is_its_authors_formula(small_timm, tmp_path):
    """The images are noise; resizing overshoots, and neither side clips levels below 0 or above 255."""
    weights = drawn()
    torch.save(weights | {"mask_token": torch.ones(7, 8)}, tmp_path / "hub.pth")
    extractor = make_extractor(DINO, tmp_path / "hub.pth", "cpu")
    for levels in (levels_of(2, 40), levels_of(1, 300)):
        features, logits = extractor(levels)
        assert logits is None and features.dtype == torch.float32
        assert close(features, expected(levels, weights))


def test_the_declared_network_is_as_large_as_the_published_one():
    """The file also holds a mask token of 1024 values."""
    with torch.device("meta"):
        assert count_parameters(declared()) == 304_367_616


def test_other_weights_are_refused(small_timm, tmp_path, monkeypatch):
    weights = drawn()
    wrong: dict[str, Any] = {
        "blocks.1.norm1.weight": {k: v for k, v in weights.items() if "blocks.1" not in k},
        "position": weights | {"pos_embed": torch.ones(1, 257, 32)},
        "patches": weights | {"patch_embed.proj.weight": torch.ones(32, 3, 16, 16)},
        "register_tokens": weights | {"register_tokens": torch.ones(1, 4, 32)},
        "blocks.2.norm1.bias": weights | {"blocks.2.norm1.bias": torch.ones(32)},
        "embeddings": {"a": torch.ones(1)},
        "dinov2": [torch.ones(1)],
    }
    for word, state in wrong.items():
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(FormatError, match=rf"w\.pth: .*{word}"):
            load_dinov2(tmp_path / "w.pth")
    save_file(weights, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-9])
    for name in ("cut.safetensors", "none.pth"):
        with pytest.raises(FormatError, match=name):
            load_dinov2(tmp_path / name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"elbocli\[extractors\]"):
        load_dinov2(tmp_path / "w.pth")

"""`elbo eval --selftest`: an extractor, on images made here, against what must hold whatever its weights are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.streams import Stream
from elbocli.errors import DataError
from elbocli.evaluate.resizes import RESIZES
from elbocli.files.schema import Record
from elbocli.nn.extractors import STRICT, Extractor, known_weights
from elbocli.runtime.device import Precision, name_of, sent

SIZES = ((32, 32), (64, 64), (96, 160), (256, 256))
"""Height and width of the images of which the resize is looked at. The network sees those of 64 pixels."""
SEEN = (64, 64)
MOST_FEATURES = 3e-4
"""Tolerance of features, relative to how far they are from their mean."""
MOST_LEVELS = {"antialiased-bicubic": 1e-2, "tf1-bilinear": 1e-3}
"""Tolerances of resizes, of a level. torch's own float32 is up to 5e-3 off at edges of black and white, TensorFlow's 3e-5."""
FIGURES = {"3bcdfad010b982b1563a266ffada969d736ddb63c5a6af65690a9af7eeac0035": (2.152755546681874, 3.0620379891993266)}
"""Mean and standard deviation of the features of the images of 64 pixels, by the digest of weights: elbo-tiny's."""
TELLS = (
    "this machine resizes as the extractor is defined, and computes its network as float64 does, in batches of any size"
)
TELLS_NOT = (
    "whether these are the weights that a publication used, except where `weights` names a public file; whether images "
    "are decoded, cropped and stored as there"
)


@dataclass(frozen=True)
class Check(Record):
    """One comparison. against: what the extractor's numbers were compared with. unit: of difference and tolerance."""

    name: str
    against: str
    difference: float
    tolerance: float
    unit: str
    passed: bool


@dataclass(frozen=True)
class SelfTest(Record):
    """The comparisons, and what they were made of. weights: the public file that has their digest, where elbo knows one."""

    extractor: str
    extractor_sha256: str
    weights: str | None
    device: str
    torch_version: str
    features_mean: float
    features_sd: float
    checks: list[Check]
    passed: bool
    tells: str = TELLS
    tells_not: str = TELLS_NOT


def selftest(extractor: Extractor, device: torch.device) -> SelfTest:
    """Compare the extractor, which is on the device. Raises DataError when it can't take such images."""
    images = made_images(*SEEN)
    features = _features(extractor, images, device)
    checks = [*_network_checks(extractor, images, features, device), *_resize_checks(extractor, device)]
    mean, sd = float(features.mean()), float(features.std())
    if kept := FIGURES.get(extractor.weights_sha256):
        off = max(abs(mean - kept[0]), abs(sd - kept[1])) / kept[1]
        checks.append(
            _check("figures", "mean and spread of these features, kept in elbo", off, MOST_FEATURES, "of their spread")
        )
    return SelfTest(
        extractor.name,
        extractor.weights_sha256,
        known_weights(extractor.weights_sha256),
        name_of(device),
        str(torch.__version__),
        mean,
        sd,
        checks,
        all(check.passed for check in checks),
    )


def made_images(height: int, width: int) -> Tensor:
    """Images that show mistakes of a resize, uint8 [4, 3, H, W]: a ramp, rings that get finer outwards, edges, noise."""
    y, x = np.mgrid[:height, :width] + 0.5
    down, across = y / height, x / width
    radius = (down - 0.5) ** 2 + (across - 0.5) ** 2
    rings = 0.5 + 0.5 * np.cos(np.pi * min(height, width) * radius)
    edges = (y < height / 3) ^ (x > width / 2) ^ (np.floor(x) % 16 == 3)
    gray = [down, rings, edges.astype(float)]
    ramps = [np.stack([each, across * each, 1 - each]) for each in gray]
    noise = Stream(0, "selftest").at(0).random((3, height, width))
    return torch.from_numpy((np.stack([*ramps, noise]) * 255).round().astype(np.uint8))


def _features(extractor: Extractor, images: Tensor, device: torch.device) -> Tensor:
    """Features as scoring has them, in float64 on the CPU. Raises DataError when they are not finite."""
    with torch.inference_mode(), Precision(STRICT, device).applied():
        features = extractor(sent(images, device))[0].cpu().double()
    if not features.isfinite().all():
        raise DataError(
            f"{extractor.name}: features of the made images are not finite; look at its weights and the device"
        )
    return features


def _network_checks(extractor: Extractor, images: Tensor, features: Tensor, device: torch.device) -> Iterator[Check]:
    alone = torch.cat([_features(extractor, images[k : k + 1], device) for k in range(len(images))])
    unit = "of the features' distance from their mean"
    yield _check("batch", "each image by itself", _relative(features, alone), MOST_FEATURES, unit)
    exact, how = _exact(extractor, images)
    yield _check("network", how, _relative(features, exact), MOST_FEATURES, unit)


def _exact(extractor: Extractor, images: Tensor) -> tuple[Tensor, str]:
    """Features by the same network in float64 on the CPU, in float32 where it knows no other; and words for it."""
    with torch.inference_mode():
        try:
            doubled: Any = copy.deepcopy(extractor.module).cpu().double()
            if hasattr(doubled, "feature_extractor_internal_dtype"):  # torch-fidelity's
                doubled.feature_extractor_internal_dtype = torch.float64
            return _first(doubled(images)).double(), "the same network in float64 on the CPU"
        except (
            RuntimeError,
            AssertionError,
            ValueError,
            TypeError,
        ):  # a .pt2 program computes in what it was exported in
            single = copy.deepcopy(extractor.module).cpu()
            return _first(single(images)).double(), "the same network in float32 on the CPU"


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _resize_checks(extractor: Extractor, device: torch.device) -> Iterator[Check]:
    how = extractor.preprocessing
    if how is None:
        return
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (how.mean, how.std))
    for height, width in SIZES:
        images = made_images(height, width)
        entering = _entering(extractor, how.layer, images, device)
        levels = (entering.cpu().double() * std + mean) * 255
        rows, columns = (RESIZES[how.resize](side, how.size) for side in (height, width))
        expected = torch.from_numpy(rows @ images.double().numpy() @ columns.T)
        off = float((levels - expected).abs().max()) if levels.shape == expected.shape else float("inf")
        yield _check(
            f"resize {width} x {height}", f"{how.resize} in float64", off, MOST_LEVELS[how.resize], "of 255 levels"
        )


def _entering(extractor: Extractor, layer: str, images: Tensor, device: torch.device) -> Tensor:
    """The images as they enter the network; the network itself is not run."""

    class Enough(Exception):
        pass

    seen: list[Tensor] = []

    def look(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])
        raise Enough

    hook = extractor.module.get_submodule(layer).register_forward_pre_hook(look)
    try:
        with torch.inference_mode(), Precision(STRICT, device).applied():
            extractor(sent(images, device))
    except Enough:
        pass
    finally:
        hook.remove()
    return seen[0]


def _check(name: str, against: str, difference: float, tolerance: float, unit: str) -> Check:
    return Check(name, against, difference, tolerance, unit, difference <= tolerance)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / (expected - expected.mean(0)).norm())

"""`elbo eval --selftest`: what is right passes, and each mistake of a machine is told by its check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.evaluate import selftest as module
from elbocli.evaluate.resizes import RESIZES
from elbocli.evaluate.selftest import SelfTest, made_images, selftest
from elbocli.nn.extractors import Extractor, Preprocessing, make_extractor
from elbocli.nn.extractors.vit import Vit

HOW = Preprocessing("antialiased-bicubic", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "network")
CPU = torch.device("cpu")


class Pooled(nn.Module):
    """Features of images as a network sees them: means of 14 × 14 places, mixed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(3 * 14 * 14, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.adaptive_avg_pool2d(x, 14).flatten(1))


def extractor(vit: nn.Module | None = None) -> Extractor:
    return Extractor("pooled", vit or Vit(Pooled(), HOW, False).eval(), "0" * 64, channels=3, preprocessing=HOW)


def failed(found: SelfTest) -> set[str]:
    return {check.name.split()[0] for check in found.checks if not check.passed}


def test_what_is_right_passes_and_says_what_it_can_not_tell() -> None:
    found = selftest(extractor(), CPU)
    assert found.passed and failed(found) == set() and found.weights is None
    assert {check.name.split()[0] for check in found.checks} == {"batch", "network", "resize"}
    assert "weights" in found.tells_not
    tiny = selftest(make_extractor("elbo-tiny", None, CPU), CPU)
    assert tiny.passed and {check.name for check in tiny.checks} == {"batch", "network", "figures"}


def test_a_resize_that_is_not_as_declared_is_told() -> None:
    class NotAntialiased(Vit):
        def forward(self, images: Tensor) -> Tensor:
            x = F.interpolate(images.to(self.mean.dtype), (224, 224), mode="bicubic")
            return self.network((x / 255 - self.mean) / self.std)

    class Clamped(Vit):
        def forward(self, images: Tensor) -> Tensor:
            x = F.interpolate(images.to(self.mean.dtype), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
            return self.network((x / 255 - self.mean) / self.std)

    for other in (NotAntialiased, Clamped):
        assert failed(selftest(extractor(other(Pooled(), HOW, False)), CPU)) == {"resize"}
    tf1 = HOW._replace(resize="tf1-bilinear")
    assert failed(selftest(extractor()._replace(preprocessing=tf1), CPU)) == {"resize"}


def test_lower_precision_and_numbers_that_depend_on_the_batch_are_told() -> None:
    class Rounded(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out.bfloat16().float() if x.dtype == torch.float32 else out

    class Shifted(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0) * (len(x) > 1))

    assert "network" in failed(selftest(extractor(Vit(Rounded(), HOW, False)), CPU))
    assert "batch" in failed(selftest(extractor(Vit(Shifted(), HOW, False)), CPU))


def test_figures_that_are_kept_are_those_of_these_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = make_extractor("elbo-tiny", None, CPU)
    mean, sd = module.FIGURES[tiny.weights_sha256]
    monkeypatch.setitem(module.FIGURES, tiny.weights_sha256, (mean, sd * 1.001))
    assert failed(selftest(tiny, CPU)) == {"figures"}


def test_inceptions_resize_is_tensorflow_1s(inception_weights: Path) -> None:
    found = selftest(make_extractor("inception-v3-compat", inception_weights, CPU), CPU)
    assert found.passed, found
    assert sum(check.name.startswith("resize") for check in found.checks) == len(module.SIZES)


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.parametrize("side", [1, 7, 224, 299, 600])
def test_the_matrices_of_resizes_keep_constants_and_do_not_mix_far_pixels(name: str, side: int) -> None:
    rows = RESIZES[name](side, 224)
    assert rows.shape == (224, side) and np.allclose(rows.sum(1), 1)
    places = np.arange(224) * side / 224
    far = np.abs(np.arange(side) - places[:, None]) > 2 * max(side / 224, 1) + 1
    assert not rows[far].any()
    if side == 224:
        assert np.array_equal(rows, np.eye(224))


def test_made_images_are_the_same_everywhere_and_reach_both_ends() -> None:
    found = made_images(64, 64)
    assert found.shape == (4, 3, 64, 64) and torch.equal(found, made_images(64, 64))
    assert found.amin() == 0 and found.amax() == 255 and all(image.float().std() > 20 for image in found)


def test_the_command_prints_json_and_its_exit_status_says_whether_all_passed(
    elbo: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    result = elbo("eval", "--selftest", "--extractor", "elbo-tiny")
    assert result.returncode == 0, result.stderr
    assert SelfTest.from_json(json.loads(result.stdout)).passed
    plugin = tmp_path / "odd.py"
    plugin.write_text(
        "import torch\nimport elbocli.plugin as elbo\n"
        "class Odd(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        return images.float().flatten(1)[:, :9] - len(images)\n"
        "@elbo.extractor('odd')\n"
        "def odd(weights):\n"
        "    return elbo.Extractor('odd', Odd(), 'none', channels=3)\n"
    )
    result = elbo("eval", "--selftest", "--extractor", "odd", "--plugin", plugin)
    said = result.stderr.decode()
    assert result.returncode == 1 and "extractor odd: batch: " in said and "compare with no others" in said
    assert not json.loads(result.stdout)["passed"]
    result = elbo("eval", digits, "--selftest")
    assert result.returncode == 2 and b"makes its own images" in result.stderr

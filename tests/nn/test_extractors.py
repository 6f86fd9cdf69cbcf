"""Feature extractors."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.nn.extractors import Extractor, make_extractor


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_tiny_is_the_same_everywhere() -> None:
    extractor = make_extractor("elbo-tiny", None, "cpu")
    weights = b"".join(value.numpy().tobytes() for value in extractor.module.state_dict().values())
    assert extractor.weights_sha256 == hashlib.sha256(weights).hexdigest()
    grey = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    features, logits = extractor(grey)
    assert features.shape == (3, 64) and logits is not None and logits.shape == (3, 10)
    assert torch.equal(features, extractor(grey.expand(-1, 3, -1, -1))[0])


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"a": Evil(tmp_path / "hacked")}, tmp_path / "evil.pth")
    with pytest.raises(FormatError, match="refused"):
        make_extractor("inception-v3-compat", tmp_path / "evil.pth", "cpu")
    assert not (tmp_path / "hacked").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(FormatError, match="not weights of this inception-v3-compat network"):
        make_extractor("inception-v3-compat", tmp_path / "other.pth", "cpu")


def test_inceptions_features_are_torch_fidelitys_up_to_rounding(inception_weights: Path, photos: np.ndarray) -> None:
    """Batch norm folded, channels last: within 1e-4, relative to the features' size."""
    ours = make_extractor("inception-v3-compat", inception_weights, "cpu")
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    images = torch.from_numpy(photos[:8]).permute(0, 3, 1, 2)
    for mine, other in zip(ours(images), theirs(images)):
        assert mine is not None and mine.std() > 1e-3
        assert (mine - other).norm() < 1e-4 * (other - other.mean(0)).norm()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ours.module.modules())


@pytest.mark.slow
def test_vgg16s_features_are_torch_fidelitys(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.vgg16(init_weights=False).state_dict(), tmp_path / "vgg.pth")
    ours = make_extractor("vgg16", tmp_path / "vgg.pth", "cpu")
    theirs = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(tmp_path / "vgg.pth"))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(ours(images)[0], theirs(images)[0]) and ours(images)[1] is None
    with pytest.raises(UsageError, match="vgg16 needs --extractor-weights"):
        make_extractor("vgg16", None, "cpu")


def test_unknown_names_and_useless_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean inception-v3-compat"):
        make_extractor("inception-v4", None, "cpu")
    for name in ("elbo-tiny", "x.pt2"):
        with pytest.raises(UsageError, match="weights"):
            make_extractor(name, tmp_path / "w.pth", "cpu")


def test_an_extractor_that_returns_something_else_is_refused() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(FormatError, match="expected features"):
        Extractor("odd", torch.nn.Identity(), "")(images)
    with pytest.raises(DataError, match="can't take images"):
        Extractor("odd", torch.nn.Linear(3, 3), "")(images)

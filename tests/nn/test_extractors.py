"""Feature extractors."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

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
    assert extractor.weights_sha256 == "3bcdfad010b982b1563a266ffada969d736ddb63c5a6af65690a9af7eeac0035"
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
    with pytest.raises(FormatError, match="not weights of this Inception network"):
        make_extractor("inception-v3-compat", tmp_path / "other.pth", "cpu")


def test_unknown_names_and_useless_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean inception-v3-compat.*\.pt2"):
        make_extractor("inception-v3", None, "cpu")
    for name in ("elbo-tiny", "x.pt2"):
        with pytest.raises(UsageError, match="weights"):
            make_extractor(name, tmp_path / "w.pth", "cpu")


def test_an_extractor_that_returns_something_else_is_refused() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(FormatError, match="expected features"):
        Extractor("odd", torch.nn.Identity(), "")(images)
    with pytest.raises(DataError, match="can't take images"):
        Extractor("odd", torch.nn.Linear(3, 3), "")(images)

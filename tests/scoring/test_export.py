"""An exported network is an extractor with the features of the module; networks that don't fit are refused."""

import re

import pytest
import torch
from torch import Tensor, nn

import elbocli
from elbocli.errors import FormatError, UsageError
from elbocli.scoring.extractors import make_extractor


class Features(nn.Module):
    """uint8 [B, 3, 8, 8] → features [B, 4], logits [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(192, 4)
        self.logits = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images.float().flatten(1))
        return features, self.logits(features)


class Fixed(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().reshape(2, 192)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_refused_and_the_remedy_that_is_named_makes_it_good(batch, tmp_path):
    network = Features().eval()
    path = tmp_path / "a net.pt2"
    levels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    torch.export.save(torch.export.export(network, (levels[:batch],)), path)
    with pytest.raises(FormatError, match=f"batches of {batch} images") as caught:
        make_extractor(str(path), None, "cpu")
    (remedy,) = re.findall(r"elbocli\.export_extractor\(.*\)", str(caught.value))
    eval(remedy, {"elbocli": elbocli, "network": network, "images": levels[:batch]})
    for count in (1, 2, 5):
        for found, wanted in zip(make_extractor(str(path), None, "cpu")(levels[:count]), network(levels[:count])):
            assert found is not None and torch.allclose(found, wanted)


def test_an_extractor_of_one_batch_size_alone_is_refused_and_nothing_is_written(tmp_path):
    for network, name in ((Fixed(), "x.pt2"), (Features(), "x.pt")):
        with pytest.raises(UsageError):
            elbocli.export_extractor(network, torch.zeros(5, 3, 8, 8, dtype=torch.uint8), tmp_path / name)
    assert list(tmp_path.iterdir()) == []

"""A network exported for batches of one size alone is refused with a way out, which works."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elbocli
from elbocli.errors import FormatError, UsageError
from elbocli.nn.extractors import make_extractor

IMAGES = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)


class Net(nn.Module):
    """uint8 [B, 3, 8, 8] → features [B, 4], logits [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.logits = nn.Linear(192, 4), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images.float().flatten(1))
        return features, self.logits(features)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_refused_and_the_remedy_that_is_named_makes_it_good(batch: int, tmp_path: Path) -> None:
    network, path = Net().eval(), tmp_path / "a net.pt2"
    torch.export.save(torch.export.export(network, (IMAGES[:batch],)), path)
    with pytest.raises(FormatError, match=f"takes batches of {batch} images alone") as caught:
        make_extractor(str(path), None, "cpu")
    (remedy,) = re.findall(r"elbocli\.export_extractor\(.*\)", str(caught.value))
    eval(remedy, {"elbocli": elbocli, "network": network, "images": IMAGES[:batch]})
    for count in (1, 2, 5):
        features, logits = make_extractor(str(path), None, "cpu")(IMAGES[:count])
        expected = network(IMAGES[:count])
        assert logits is not None
        assert torch.allclose(features, expected[0]) and torch.allclose(logits, expected[1])


def test_a_network_of_one_batch_size_alone_is_refused_in_plain_words(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().reshape(2, 192)

    with pytest.raises(UsageError, match=r"for batches of any size"):
        elbocli.export_extractor(Fixed(), IMAGES, tmp_path / "x.pt2")
    with pytest.raises(UsageError, match=r"ends in \.pt2"):
        elbocli.export_extractor(Net(), IMAGES, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []

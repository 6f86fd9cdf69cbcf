"""Train a small classifier of digits and export it for `elbo eval --extractor FILE.pt2`: features and logits."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import elbocli

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("train", type=Path, help="dataset to learn from")
parser.add_argument("test", type=Path, help="dataset to report accuracy on")
parser.add_argument("out", type=Path)
args = parser.parse_args()


class Classifier(nn.Module):
    """uint8 [B,1,8,8] → (features [B,64], logits [B,10])."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU())
        self.logits = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.convs(images.float() / 127.5 - 1))
        return features, self.logits(features)


def load(path: Path) -> tuple[Tensor, Tensor]:
    data = elbocli.open_dataset(path)
    images = torch.cat([torch.from_numpy(batch) for batch in data.batches(256)]).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(data.labels)


torch.manual_seed(0)
images, labels = load(args.train)
model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
for _ in range(25):
    for rows in torch.randperm(len(images)).split(64):
        # A pixel's shift either way: the features should tell digits, not positions.
        shift = torch.randint(-1, 2, (2,)).tolist()
        _, logits = model(images[rows].roll(shift, (2, 3)))
        loss = nn.functional.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model.eval().requires_grad_(False)
test_images, test_labels = load(args.test)
right = (model(test_images)[1].argmax(1) == test_labels).double().mean()
elbocli.export_extractor(model, images[:2], args.out)
print(f"classifier: {right:.1%} of {len(test_images)} test images right; {args.out}")

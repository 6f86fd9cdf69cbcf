"""Train a small classifier of images and export it for `elbo eval --extractor FILE.pt2`: features and logits."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import elbocli

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("train", type=Path, help="dataset to learn from")
parser.add_argument("test", type=Path, help="dataset to report accuracy on")
parser.add_argument("out", type=Path)
parser.add_argument("--epochs", type=int, default=25)
args = parser.parse_args()


class Classifier(nn.Module):
    """uint8 [B,C,S,S] → (features [B,64], logits [B,classes]). Above 8 pixels the first layer halves them, too."""

    def __init__(self, size: int, channels: int, classes: int) -> None:
        super().__init__()
        first, left = (nn.MaxPool2d(2), size // 4) if size > 8 else (nn.Identity(), size // 2)
        self.convs = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            first,
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64 * left**2, 64), nn.ReLU())
        self.logits = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.convs(images.float() / 127.5 - 1))
        return features, self.logits(features)


def load(path: Path) -> tuple[Tensor, Tensor]:
    data = elbocli.open_dataset(path)
    images = torch.cat([torch.from_numpy(batch) for batch in data.batches(256)]).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(data.labels)


torch.manual_seed(0)
images, labels = load(args.train)
model = Classifier(images.shape[-1], images.shape[1], int(labels.max()) + 1)
optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
for _ in range(args.epochs):
    for rows in torch.randperm(len(images)).split(64):
        # A pixel's shift either way: the features should tell classes, not positions.
        shift = torch.randint(-1, 2, (2,)).tolist()
        _, logits = model(images[rows].roll(shift, (2, 3)))
        loss = nn.functional.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model.eval().requires_grad_(False)
test_images, test_labels = load(args.test)
guesses = torch.cat([model(part)[1].argmax(1) for part in test_images.split(1000)])
right = (guesses == test_labels).double().mean()
elbocli.export_extractor(model, images[:2], args.out)
print(f"classifier: {right:.1%} of {len(test_images)} test images right; {args.out}")

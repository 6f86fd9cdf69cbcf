"""Another program that trains small.py, in a loop of its own: python own_loop.py DATA.h5 STEPS OUT.safetensors."""

import sys

import torch
from safetensors.torch import save_file
from small import Small
from torch.utils.data import DataLoader, RandomSampler

import elbocli

path = sys.argv[1]
steps = int(sys.argv[2])
out = sys.argv[3]
torch.manual_seed(0)
data = elbocli.open_dataset(path)
network = Small(data.image_size, data.channels, data.num_classes, channels=32, depth=6)
loss = elbocli.DiffusionLoss("sigmoid:bias=2", "cosine", "v", logsnr_min=-10, logsnr_max=10)
optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0)
order = RandomSampler(data, replacement=True, num_samples=64 * steps)
for pixels, classes in DataLoader(data, 64, sampler=order):  # type: ignore[arg-type]  # a dataset by its methods
    labels = classes.where(torch.rand(64) >= 0.1, -1)
    optimizer.zero_grad()
    loss(network, elbocli.normalised(pixels), labels).loss.mean().backward()
    optimizer.step()
save_file({f"net.{name}": value for name, value in network.state_dict().items()}, out)

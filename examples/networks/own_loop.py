"""Another program that trains small.py, in a loop of its own: python own_loop.py DATA.h5 STEPS OUT.safetensors."""

import sys

import numpy as np
import torch
from safetensors.torch import save_file
from small import Small

import elbocli

path, steps, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.manual_seed(0)
data, draw = elbocli.open_dataset(path), np.random.default_rng(0)
network = Small(data.image_size, data.channels, data.num_classes, channels=32, depth=6)
loss = elbocli.DiffusionLoss("sigmoid:bias=2", "cosine", "v", logsnr_min=-10, logsnr_max=10)
optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0)
for _ in range(steps):
    rows = draw.integers(len(data), size=64)
    x = torch.from_numpy(data.batch(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(np.where(draw.random(64) < 0.1, -1, data.labels[rows]))
    optimizer.zero_grad()
    loss(network, x, labels).loss.mean().backward()
    optimizer.step()
save_file({f"net.{name}": value for name, value in network.state_dict().items()}, out)

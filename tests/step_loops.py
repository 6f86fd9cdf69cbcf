"""The two training loops that are compared: elbo's, and a bare one of the same network in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from elbocli.files.dataset import LATENTS, Dataset
from elbocli.nn.networks import NetworkConfig, build, place
from elbocli.train.state import TrainState
from elbocli.train.step import update

LOWERED = {"bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")


class Bare:
    """Cosine schedule, v prediction, mean squared error, fused AdamW; images normalised and on the device.

    precision: bf16 and fp16 are autocast's, anything else is float32 as torch's switches have it. micro_batch: images
    at a time; 0 is the batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: NetworkConfig,
        batch: int,
        device: torch.device = CPU,
        precision: str = "fp32",
        compile: bool = False,
        micro_batch: int = 0,
    ):
        network = place(build(config), device)
        self.network = torch.compile(network) if compile else network
        self.optimizer = torch.optim.AdamW(network.parameters(), 1e-4, weight_decay=0.0, fused=True)
        stored = torch.from_numpy(dataset.batch(np.arange(len(dataset))))
        if dataset.kind == LATENTS:
            self.images = stored[:, : config.image_channels].to(device).float()
        else:
            self.images = stored.to(device).permute(0, 3, 1, 2) / 127.5 - 1
        self.labels = torch.from_numpy(dataset.labels).to(device)
        self.batch, self.device, self.micro_batch = batch, device, micro_batch or batch
        self.lowered = LOWERED.get(precision)

    def step(self) -> None:
        """One update."""
        for rows in torch.randint(len(self.images), (self.batch,), device=self.device).split(self.micro_batch):
            x, labels = self.images[rows], self.labels[rows]
            angle = torch.rand(len(rows), device=self.device) * 0.998 + 0.001
            alpha, sigma = (f(angle * torch.pi / 2).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
            eps = torch.randn_like(x)
            with torch.autocast(self.device.type, self.lowered or torch.bfloat16, enabled=self.lowered is not None):
                out = self.network(alpha * x + sigma * eps, 2 * (alpha / sigma).log().flatten(), labels)
            loss = (out.float() - (alpha * eps - sigma * x)).square().mean()
            (loss * (len(rows) / self.batch)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_of(state: TrainState) -> Callable[[], None]:
    """All that the loop does for a step between two lines of the log."""

    def step() -> None:
        state.world.most([0, 0])
        update(state)

    return step

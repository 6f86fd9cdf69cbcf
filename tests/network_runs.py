"""Runs of a few steps on any device, as `elbo train` does them, of networks of every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import heard

from elbocli.files.dataset import Dataset
from elbocli.runs import settings
from elbocli.training import loop

UVIT = "{family: uvit, channels: 8, levels: [1, 2], blocks: 1, depth: 1, heads: 2, embedding: 16, patching: %s}"
NETWORKS = {
    "unet": "{channels: 8, levels: [1, 2], blocks: 1, attention: [4]}",
    "edm2": "{family: edm2, channels: 8, levels: [1, 2], blocks: 1, attention: [4]}",
    **{f"uvit-{patching}": UVIT % patching for patching in ("none", "dwt-1", "dwt-2")},
}
PRESET = """
network: %s
train: {prediction: v, schedule: cosine, logsnr_min: -10, logsnr_max: 10, steps: 4, batch_size: 8, lr: 2.0e-3, warmup_steps: 5,
        ema: 0.9, label_dropout: 0.1, save_every: 100, preview_every: 0, log_every: 2, precision: fp32, compile: false}
"""


def train(
    dataset: Path, out: Path, network: str = "uvit-none", tell: Callable[[str], Any] = lambda text: None, **options: Any
) -> Path:
    """Train into a folder, which may hold the beginning of the run. Returns the folder. tell: is told what is said.

    micro_batch: 0 takes the planned size.
    """
    out.parent.mkdir(exist_ok=True, parents=True)
    preset = out.parent / f"{out.name}.yaml"
    preset.write_text(PRESET % NETWORKS[network])
    data = Dataset(dataset, latents=True)
    resolved = settings.resolve({"preset": str(preset), "micro_batch": 8, "warmup_steps": 5, "log_every": 2, **options}, data)
    with heard() as lines:
        loop.run(data, out, resolved)
    for line in lines:
        tell(line)
    return out


def measured_by(run: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without the time that they took, and without scores, which depend on how pixels round."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_s" and not key.startswith("eval_")} for row in rows]

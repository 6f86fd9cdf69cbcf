"""A researcher's way through the Python API: a network, a loop and a weighting of one's own, then elbo's runs of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = Path(__file__).parent.parent / "examples" / "networks" / "small.py"
PLUGIN = """
from small import Small

import elbocli.plugin as elbo


@elbo.weighting("bump", formula="exp(-(logsnr-center)^2/8)", monotone=False, source="a test", center=0.0)
def bump(logsnr, center):
    return (-(logsnr - center).square() / 8).exp()


class Mine(Small):
    pass
"""
PRESET = """
network: {family: module, name: "mine.py:Mine", arguments: "channels=8,depth=2"}
train: {prediction: v, schedule: adaptive, logsnr_min: -10, logsnr_max: 10, steps: 4, batch: 16, ema: 0.9, preview_every: 0}
"""
LOOP = """
import json

import torch
from mine import Mine
from torch.utils.data import DataLoader

import elbocli

torch.manual_seed(0)
data = elbocli.open_dataset("digits.h5")
network = Mine(8, 1, 10, channels=8, depth=2)
loss = elbocli.DiffusionLoss("bump:center=1", "adaptive", "v", logsnr_min=-10, logsnr_max=10)
optimizer, losses = torch.optim.AdamW(network.parameters(), 2e-3), []
for epoch in range(8):
    for pixels, labels in DataLoader(data, 50, shuffle=True, num_workers=1):
        terms = loss(network, elbocli.normalised(pixels), labels)
        terms.loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(terms.loss.mean()))
    loss.adapt(loss.take_sums())
network.eval()
how = {"shape": (1, 8, 8), "n": 4, "labels": torch.arange(4), "steps": 4}
images = elbocli.draw(network, loss=loss, **how)
bound = elbocli.variational_bound(network, loss=loss, pixels=pixels, labels=labels, draws=2)
try:
    refused = str(elbocli.open_run("run"))
except elbocli.ElboError as error:
    refused = str(error)
run = elbocli.open_run("run", plugins=["mine.py"])
drawn = elbocli.draw(run.network, run.prediction, schedule=run.schedule(), **how)
told = {"losses": losses, "images": [images.isfinite().all().item(), [*images.shape], [*drawn.shape]], "bpd": bound.bpd}
told["density"] = loss.schedule.density(torch.tensor([-8.0, 1.0], dtype=torch.float64)).tolist()
print(json.dumps({**told, "refused": refused, "same class": type(run.network.network) is Mine}))
"""


def test_a_researchers_journey(elbo: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    shutil.copy(SMALL, tmp_path / "small.py")
    shutil.copy(digits, tmp_path / "digits.h5")
    for name, text in (("mine.py", PLUGIN), ("mine.yaml", PRESET), ("loop.py", LOOP)):
        (tmp_path / name).write_text(text)
    (tmp_path / "elsewhere").mkdir()
    train = ("train", "../digits.h5", "-o", "../run", "--preset", "../mine.yaml", "--weighting", "bump:center=1")
    trained = elbo(*train, "--plugin", "../mine.py", cwd=tmp_path / "elsewhere")
    assert trained.returncode == 0, trained.stderr.decode()

    def python(*words: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = json.loads(python("loop.py"))
    assert sum(told["losses"][-6:]) < 0.9 * sum(told["losses"][:6])
    assert told["images"] == [True, [4, 1, 8, 8], [4, 1, 8, 8]] and 0 < told["bpd"] < 20
    assert told["density"][1] > 5 * told["density"][0], "the schedule follows weighting and errors"
    assert "mine.py" in told["refused"] and "plugins=" in told["refused"]
    assert told["same class"], "a plug-in that the program has imported is not run again"
    assert python("-c", "import elbocli; print(elbocli.open_run('run').step)", ELBO_PLUGIN="mine.py") == "4\n"

"""Under torchrun: prints what a plan says that activations and gathered weights need, and what a pass really takes."""

import gc
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from elbocli.core.loss import denoising_losses
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.nn.networks import build
from elbocli.run import settings
from elbocli.run.settings import PresetData
from elbocli.runtime.device import PRECISIONS, Precision
from elbocli.train.plan import Plan


def memory(line: str) -> int:
    """Of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(text for text in status.splitlines() if text.startswith(line)).split()[1])


def one_pass(network: torch.nn.Module, precision: str) -> None:
    """One image of 32 pixels."""
    x, label = torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)
    level, schedule = torch.zeros(1, dtype=torch.float64), parse_schedule("uniform", -10, 10)
    how = label, level, parse_weighting("elbo"), schedule, Prediction("v")
    with Precision(precision, torch.device("cpu")).autocast():
        loss = denoising_losses(network, x, torch.zeros_like(x), *how).loss
    loss.mean().backward()


def main(precision: str, preset: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=1))
    data = PresetData("here", "images", 32, 3, 10, 100)
    options = {"preset": str(preset), "parallel": "fsdp", "precision": precision}
    planned = Plan(settings.resolve(options, data), dist.get_world_size())
    network = build(planned.network)
    policy = MixedPrecisionPolicy(
        param_dtype=PRECISIONS[precision] if precision != "fp32" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for unit in (*network.units(), network):
        fully_shard(unit, mp_policy=policy)
    one_pass(network, precision)
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    one_pass(network, precision)
    taken = memory("VmHWM") - before
    if dist.get_rank() == 0:
        parts = planned.memory()
        print(parts["gathered"] + parts["activations"], taken)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""The kind of machine on which training gives the same bits."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch


def kind() -> str:
    """torch's version, and the processor's family and model, by which its libraries choose their code."""
    cpu, info = platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        told = re.findall(r"^(?:vendor_id|cpu family|model|CPU part)\s*: (.*)$", info.read_text(), re.MULTILINE)
        cpu = " ".join([cpu, *told[:3]])
    return f"torch {torch.__version__}, {cpu}, {torch.backends.cpu.get_cpu_capability()}"

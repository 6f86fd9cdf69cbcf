"""The card, its driver, and the versions of what runs on it."""

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from worker import Row, Session

from elbocli.version import __version__

ASKED = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit", "memory.total")
NEEDED = ("numpy", "h5py", "click", "pyyaml", "tqdm", "safetensors", "jinja2", "pillow")
OPTIONAL = {
    "pytest": "pytest",
    "triton": "triton",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "torch_fidelity": "torch-fidelity",
    "diffusers": "diffusers",
}
"""Package by the name of its module."""


def has(module: str) -> bool:
    """Tell whether a package can be imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _said(*line: str) -> str:
    """The first line that a program prints; nothing when it can't."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


def _card() -> Iterator[Row]:
    properties = torch.cuda.get_device_properties(0)
    yield Row("card", torch.cuda.get_device_name(0))
    yield Row("compute capability", f"{properties.major}.{properties.minor}")
    yield Row("multiprocessors", properties.multi_processor_count)
    yield Row("memory", properties.total_memory / 1e9, "GB")
    yield Row("bf16", "yes" if torch.cuda.is_bf16_supported() else "no")
    told = _said("nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader", "--id=0").split(", ")
    for name, value in zip(ASKED, told if len(told) == len(ASKED) else ["not told by nvidia-smi"] * len(ASKED)):
        yield Row(name.replace(".", " ").replace("_", " "), value)
    yield Row("CUDA of torch", str(torch.version.cuda))
    yield Row("cuDNN", str(torch.backends.cudnn.version()))
    yield Row("NCCL", ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none")


def rows(session: Session) -> Iterator[Row]:
    """Facts about this machine. Raises RuntimeError where there is no card to measure."""
    if session.device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device; --device cpu runs all of this small")
        yield from _card()
    yield Row("processor", f"{platform.machine()}, {os.cpu_count()} cores", note=f"torch uses {torch.get_num_threads()}")
    yield Row("python", platform.python_version())
    yield Row("elbo", __version__, note=_said("git", "describe", "--always", "--dirty"))
    yield Row("torch", str(torch.__version__))
    for package in NEEDED:
        yield Row(package, _version(package))
    for module, package in OPTIONAL.items():
        yield Row(package, _version(package) if has(module) else "absent")
    compiler = next(filter(None, (shutil.which(name) for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"))), "")
    yield Row("C compiler", Path(compiler).name if compiler else "absent", note=_said(compiler, "--version") if compiler else "")

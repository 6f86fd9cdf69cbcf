"""The C++ part of the pretend device: built once for a version of torch, and loaded."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("shim.cpp")
CARDS = 2
"""Number of pretend cards, as in shim.cpp."""


def lacking() -> str:
    """Return why there can be no pretend device here; nothing where there can be one."""
    if torch.version.cuda or torch.version.hip:
        return "needs a torch without CUDA, whose place it takes; `make gpu` is for this one"
    return "" if _compiler() else "needs a C++ compiler"


@cache
def shim() -> ctypes.CDLL:
    """Load the library, after having built it if need be. Must come before the first backward pass of the process."""
    compiler = _compiler()
    root = Path(torch.__file__).parent
    assert compiler is not None, "lacking() says so"
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", "-w", f"-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}"]
    digest = hashlib.sha256(" ".join([compiler, torch.__version__, str(root), *flags, SOURCE.read_text()]).encode())
    library = SOURCE.parent / "__pycache__" / f"shim-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        where = ["-I", root / "include", SOURCE, "-L", root / "lib", "-lc10", "-ltorch_cpu"]
        subprocess.run([compiler, *flags, *map(str, where), "-o", str(made)], check=True)
        made.replace(library)
    return ctypes.CDLL(str(library))


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")

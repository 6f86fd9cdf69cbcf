"""The machine: devices, processes, threads, signals and progress. Begin with `device`."""

from typing import Final

AUTO: Final = "auto"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

"""The device that a run works on, and the precision of its networks there."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from elbocli.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions, and the type in which each keeps what a network computes."""
REFUSED = {"mps": "nobody has measured elbo on it yet", "meta": "it holds no numbers"}
"""Devices that torch has and elbo refuses, with the reason."""
DEFAULT = "ELBO_DEVICE"
"""The variable that says what `auto` is."""


def meant_by(name: str) -> str:
    """Return the name that `auto` stands for: $ELBO_DEVICE, else cuda if there is one, else cpu. Others mean themselves."""
    asked = os.environ.get(DEFAULT) or "auto" if name == "auto" else name
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(name: str) -> torch.device:
    """Return the device by its name, or what `auto` means. A CUDA device has an index, and is from now on the current one.

    Raises UsageError, with those that are here, when it doesn't work here.
    """
    name = meant_by(name)
    try:
        device = torch.device(name)
        if device.type in REFUSED:
            raise RuntimeError(REFUSED[device.type])
        torch.empty(1, device=device)
        if device.type == "cuda":
            if device.index is not None:
                torch.cuda.set_device(device)
            device = torch.device("cuda", torch.cuda.current_device())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = devices_here()
        told = name in here or str(error) in REFUSED.values()
        why = f": {str(error).splitlines()[0][:120]}" if told else ""
        known = ", ".join(f"{each} ({about})" if about else each for each, about in here.items())
        raise UsageError(f"device {name!r} can't be used here{why}; here are: {known}") from error
    return device


def devices_here() -> dict[str, str]:
    """Return the devices that can be named here, with what each is: the processor, and CUDA's cards."""
    cards = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {"cpu": "", **{f"cuda:{index}": torch.cuda.get_device_name(index) for index in cards}}


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a network on a device, by name; it says itself as what it is there.

    fp32: strict, as on a CPU. tf32: CUDA multiplies float32 with 10 bits of mantissa, and adds up in float32; elsewhere
    it is fp32. bf16, fp16: by autocast; what that leaves in float32 is as with tf32. Losses are never below float32, and
    λ is never rounded. Raises UsageError for another name.
    """

    name: str
    device: torch.device

    def __post_init__(self) -> None:
        if self.name not in PRECISIONS:
            raise UsageError(f"precision is {self.name!r}; it must be one of {', '.join(PRECISIONS)}")

    @property
    def tf32(self) -> bool:
        """Whether float32 is multiplied in TF32, by matrices and by convolutions."""
        return self.device.type == "cuda" and self.name != "fp32"

    def __str__(self) -> str:
        return "fp32" if self.name == "tf32" and not self.tf32 else self.name

    def autocast(self) -> torch.autocast:
        """Return what goes around a network's forward pass."""
        dtype = PRECISIONS[self.name]
        lower = dtype != torch.float32
        return torch.autocast(self.device.type, dtype=dtype if lower else torch.bfloat16, enabled=lower)

    @contextmanager
    def applied(self, benchmark: bool = False) -> Iterator[None]:
        """Set torch's switches for all that CUDA computes in the block, backward passes too. Nothing on other devices.

        benchmark: let cuDNN try its algorithms for each shape, and keep the fastest.
        """
        if self.device.type != "cuda":
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        matmul.allow_tf32 = cudnn.allow_tf32 = self.tf32
        cudnn.benchmark = benchmark
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def usual_precision(device: str, for_gpu: bool) -> str:
    """Return the precision to train in by default on a device by name, which need not be there: fp32 on a CPU; on CUDA
    bf16 for a network made for GPUs, where the card has it, else tf32.
    """
    if meant_by(device).partition(":")[0] != "cuda":
        return "fp32"
    has_bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if for_gpu and has_bf16 else "tf32"


def card_bytes(device: str) -> int | None:
    """Return all the memory of a CUDA device by name, free or not; None where the name is another's, or no card is here."""
    name = meant_by(device)
    if name.partition(":")[0] != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(name).total_memory


def seed_dropout(device: torch.device, seed: int) -> None:
    """Masks on the device follow from a seed. torch.manual_seed also asks what other devices there are, which is slow."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def name_of(device: torch.device) -> str:
    """Return what to call a device: NVIDIA H100, or the processor's architecture and how many threads are used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}), threads: {torch.get_num_threads()}"


def pinned(value: Tensor, device: torch.device) -> Tensor:
    """Return it in memory that the device can fetch from by itself."""
    travels = device.type == "cuda" and value.device.type == "cpu"
    return value.pin_memory() if travels and not value.is_pinned() else value


def sent(value: Tensor, device: torch.device) -> Tensor:
    """Send it to the device, without waiting for that."""
    return pinned(value, device).to(device, non_blocking=True)

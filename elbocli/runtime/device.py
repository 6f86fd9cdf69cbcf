"""The device that a run works on, and its precision."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from elbocli.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Return the device by its name: `auto` is CUDA if there is one. Raises UsageError when it doesn't work here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {name!r} can't be used here: {str(error).splitlines()[0]}; leave --device out, or use cpu"
        ) from error
    if device.type == "meta":
        raise UsageError("device 'meta' holds no numbers; use --dry-run to plan")
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for the network; off for fp32."""
    dtype = PRECISIONS[precision]
    return torch.autocast(
        device.type, dtype=dtype if dtype != torch.float32 else torch.bfloat16, enabled=dtype != torch.float32
    )


def seed_dropout(device: torch.device, seed: int) -> None:
    """Masks on the device follow from a seed. torch.manual_seed also asks what other devices there are, which is slow."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def allow_tf32(allow: bool) -> None:
    """Let CUDA multiply float32 with 10 bits of mantissa where it is faster; it adds up in float32 still."""
    torch.set_float32_matmul_precision("high" if allow else "highest")
    torch.backends.cudnn.allow_tf32 = allow


def name_of(device: torch.device) -> str:
    """Return what to call a device: NVIDIA H100, or the processor's architecture and how many threads are used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}), threads: {torch.get_num_threads()}"


def precision_of(device: torch.device, precision: str) -> str:
    """Return a precision as people are told of it."""
    tf32 = device.type == "cuda" and precision == "fp32" and torch.get_float32_matmul_precision() != "highest"
    return f"{precision} (multiplications in TF32)" if tf32 else precision


def pinned(value: Tensor, device: torch.device) -> Tensor:
    """Return it in memory that the device can fetch from by itself."""
    travels = device.type == "cuda" and value.device.type == "cpu"
    return value.pin_memory() if travels and not value.is_pinned() else value


def sent(value: Tensor, device: torch.device) -> Tensor:
    """Send it to the device, without waiting for that."""
    return pinned(value, device).to(device, non_blocking=True)

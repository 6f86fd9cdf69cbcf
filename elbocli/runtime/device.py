"""The device that a run works on: which it is, its precision, its memory, and CUDA graphs of calls that repeat."""

import os
import platform
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elbocli.errors import UsageError
from elbocli.runtime.progress import log

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions, and the type in which each keeps what a network computes."""
WARM_UPS = 2
"""Calls before one is captured: libraries choose their algorithms and fetch their memory in the first."""


def meant_by(name: str) -> str:
    """Return the name that `auto` stands for: $ELBO_DEVICE, else cuda if there is one, else cpu. Others mean themselves."""
    asked = os.environ.get("ELBO_DEVICE") or "auto" if name == "auto" else name
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(name: str) -> torch.device:
    """Return the device by its name, or what `auto` means. A CUDA device has an index, and is from now on the current one.

    Raises UsageError when it doesn't work here.
    """
    name = meant_by(name)
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("elbo works on cpu and cuda")
        torch.empty(1, device=device)
        if device.type == "cuda":
            if device.index is not None:
                torch.cuda.set_device(device)
            device = torch.device("cuda", torch.cuda.current_device())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} can't be used here: {str(error).splitlines()[0]}") from error
    return device


def name_of(device: torch.device) -> str:
    """Return the name of a card, NVIDIA H100, or the processor's architecture and how many threads are used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}), threads: {torch.get_num_threads()}"


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a network on a device, by name; str() says what it is there.

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
        """Tell whether float32 is multiplied in TF32, by matrices and by convolutions."""
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
    """Return the precision to train in by default: fp32 on a CPU; on CUDA bf16 for a network made for GPUs, else tf32."""
    if not meant_by(device).startswith("cuda"):
        return "fp32"
    has_bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if for_gpu and has_bf16 else "tf32"


def seed_dropout(device: torch.device, seed: int) -> None:
    """Masks on the device follow from a seed. torch.manual_seed also asks what other devices there are, which is slow."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def pinned(value: Tensor, device: torch.device) -> Tensor:
    """Return it in pinned host memory where it goes to a card."""
    travels = device.type == "cuda" and value.device.type == "cpu"
    return value.pin_memory() if travels and not value.is_pinned() else value


def sent(value: Tensor, device: torch.device) -> Tensor:
    """Send it to the device, without waiting for that."""
    return pinned(value, device).to(device, non_blocking=True)


def card_bytes(device: str) -> int | None:
    """Return all the memory of a CUDA device by name, free or not; None where the name is another's, or no card is here."""
    name = meant_by(device)
    if name.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_properties(name).total_memory
    return None


class CudaGraphs:
    """Graphs of functions that are called again and again with inputs of the same shapes, all in one pool of memory.

    All kernels of a call are launched at once, which saves small networks most of their time. A warning says that a call
    can't be captured; from then on every call is made as it is written.
    """

    def __init__(self) -> None:
        self._pool, self._failed = torch.cuda.graph_pool_handle(), False
        self._calls = Counter[Hashable]()
        self._graphs: dict[Hashable, tuple[Any, list[Tensor | None], Tensor]] = {}

    def call(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Return function(*inputs), which must depend on them alone and draw no random numbers."""
        key = (function, *((x.shape, x.stride(), x.dtype) if x is not None else None for x in inputs))
        self._calls[key] += 1
        if not self._failed and self._calls[key] > WARM_UPS and key not in self._graphs:
            self._capture(key, function, inputs)
        if key not in self._graphs:
            return function(*inputs)
        graph, places, output = self._graphs[key]
        for place, value in zip(places, inputs, strict=True):
            if place is not None:
                place.copy_(value)  # type: ignore[arg-type]
        graph.replay()
        return output.clone()

    def _capture(self, key: Hashable, function: Callable[..., Tensor], inputs: tuple[Tensor | None, ...]) -> None:
        """Capture one call, with places for its inputs and its output."""
        places = [None if x is None else x.clone() for x in inputs]
        graph, caching = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # what it keeps would be in the graph's memory
        try:
            # The outer block goes back to this stream even where a capture that failed can't be ended. Other threads, as
            # NCCL's, may go on meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"),
            ):
                self._graphs[key] = graph, places, function(*places)
        except RuntimeError as error:
            self._failed = True
            self._graphs.clear()
            log.warning(
                "drawn without CUDA graphs, which takes longer for small networks: %s", str(error).partition("\n")[0]
            )
        finally:
            torch.set_autocast_cache_enabled(caching)

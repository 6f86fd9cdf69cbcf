"""Devices: choice, precision, memory, copies of tensors, and CUDA graphs."""

import ctypes
import os
import platform
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from elbocli.errors import Parameter, UsageError
from elbocli.runtime.progress import log

# Name of a precision → dtype of the network's activations.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CARD = Path("/dev/nvidia0")  # file of NVIDIA's driver
# Option of glibc's mallopt → bytes: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
KEEP_FREED = {-3: 1 << 25, -1: 1 << 30}
WARM_UPS = 2  # calls before a CUDA graph is captured: the first calls choose algorithms and allocate memory


def resolve_device(name: str) -> str:
    """Replace `auto` by $ELBO_DEVICE, else by cuda if available, else by cpu.

    Raises UsageError for `auto` if the machine has an NVIDIA card that this process may use, but CUDA does not start.
    """
    asked = os.environ.get("ELBO_DEVICE") or "auto" if name == "auto" else name
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "cuda"
    if CARD.exists():
        if torch.version.cuda is None:
            _warn_of_cpu_build()
        elif trouble := _cuda_trouble():
            raise UsageError(
                f"{CARD}: this machine has an NVIDIA card, but CUDA does not start: {trouble}; torch "
                f"{torch.__version__} is built for CUDA {torch.version.cuda}; update the driver, install a torch "
                "for an older CUDA, or choose ",
                Parameter("device"),
                " cpu",
            )
    return "cpu"


def _cuda_trouble() -> str:
    """Return why CUDA does not start; '' if it starts, or if no card is visible to this process."""
    try:
        torch.cuda.init()
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        # Without a card by choice: CUDA_VISIBLE_DEVICES is empty, or a Slurm job on a GPU node asked for no GPU.
        return "" if "No CUDA GPUs are available" in said else said.partition(". ")[0]
    return ""


@cache
def _warn_of_cpu_build() -> None:
    log.warning(
        "this machine has an NVIDIA card, but torch %s is a build without CUDA, so elbo uses the CPU; install a torch with "
        "CUDA, or set ELBO_DEVICE=cpu if the CPU is meant",
        torch.__version__,
    )


def choose_device(name: str) -> torch.device:
    """Return the device with a name such as cuda:1 or auto.

    A CUDA device becomes torch's current device. For the CPU, glibc keeps freed memory from then on.
    Raises UsageError: when the device doesn't work on this machine.
    """
    name = resolve_device(name)
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("elbo works only on cpu and cuda")
        torch.empty(1, device=device)
        if device.type == "cuda":
            if device.index is not None:
                torch.cuda.set_device(device)
            device = torch.device("cuda", torch.cuda.current_device())
        else:
            _keep_freed_memory()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {name!r} can't be used here: {str(error).splitlines()[0]}; choose another ", Parameter("device")
        ) from error
    return device


def _keep_freed_memory() -> None:
    # By default, glibc returns the memory of freed tensors to the system, and the system zeroes the pages of the next tensor.
    # Returning and zeroing take about a tenth of a training step. The C libraries of macOS and Alpine Linux have no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in KEEP_FREED.items():
            mallopt(option, value)


def name_of(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's architecture and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}), threads: {torch.get_num_threads()}"


@dataclass(frozen=True)
class Precision:
    """Arithmetic of a network on a device. str(): the precision actually used; on a CPU, tf32 is fp32.

    fp32: strict float32.
    tf32: CUDA multiplies float32 with 10 bits of mantissa; elsewhere the same as fp32.
    bf16, fp16: autocast; operations that autocast leaves in float32 run as with tf32.
    Raises UsageError: for another name.
    """

    name: str
    device: torch.device

    def __post_init__(self) -> None:
        if self.name not in DTYPES:
            raise UsageError(f"precision is {self.name!r}; it must be one of {', '.join(DTYPES)}")

    @property
    def tf32(self) -> bool:
        """Whether float32 matrices and convolutions are multiplied in TF32."""
        return self.device.type == "cuda" and self.name != "fp32"

    def __str__(self) -> str:
        return "fp32" if self.name == "tf32" and not self.tf32 else self.name

    def autocast(self) -> torch.autocast:
        dtype = DTYPES[self.name]
        lower = dtype != torch.float32
        return torch.autocast(self.device.type, dtype=dtype if lower else torch.bfloat16, enabled=lower)

    @contextmanager
    def applied(self, benchmark: bool = False) -> Iterator[None]:
        """Set torch's switches for TF32 and cuDNN during the block, which must include backward passes.

        benchmark: let cuDNN time its algorithms and keep the fastest.
        """
        if self.device.type != "cuda":
            yield
            return
        matmul = torch.backends.cuda.matmul
        cudnn = torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        matmul.allow_tf32 = cudnn.allow_tf32 = self.tf32
        cudnn.benchmark = benchmark
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@cache
def multiplies_bf16() -> bool:
    """Return whether this CPU has AMX instructions, which multiply bfloat16 matrices."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch can't tell
    return bool(told.get("amx_bf16"))


def usual_precision(device: str, for_gpu: bool) -> str:
    """Return the default precision of training. for_gpu: whether the network is made for GPUs."""
    if not resolve_device(device).startswith("cuda"):
        return "fp32"
    has_bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if for_gpu and has_bf16 else "tf32"


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed the dropout masks on a device."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also query all other devices, which is slow
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def pinned(value: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to pinned host memory if `device` is a GPU."""
    return value.pin_memory() if device.type == "cuda" and value.device.type == "cpu" else value


def sent(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, asynchronously."""
    return pinned(value, device).to(device, non_blocking=True)


def card_bytes(device: str) -> int | None:
    """Return the memory of a CUDA device in bytes, else None."""
    name = resolve_device(device)
    if name.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_properties(name).total_memory
    return None


class CudaGraphs:
    """CUDA graphs of functions that are called repeatedly with equal shapes."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._failed = False
        self._calls = Counter[Hashable]()
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor | None], Tensor]] = {}

    def call(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Return function(*inputs), by a CUDA graph once captured. function: deterministic; reads only inputs and weights."""
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
        places = [None if x is None else x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        caching = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # cached casts would lie in the graph's memory
        try:
            # The outer block restores this stream even if a failed capture can't be ended. "thread_local" lets other
            # threads, such as NCCL's, continue meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"),
            ):
                self._graphs[key] = graph, places, function(*places)
        except RuntimeError as error:
            self._failed = True
            self._graphs.clear()
            log.warning("CUDA graph capture failed; small networks run slower without graphs: %s", str(error).partition("\n")[0])
        finally:
            torch.set_autocast_cache_enabled(caching)

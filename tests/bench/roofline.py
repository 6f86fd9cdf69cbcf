"""The most images a second that a GPU's memory and arithmetic allow, by the kernels of a training step: nothing is run.

    python tests/bench/roofline.py [PRESET…] [--json]      (or: python tests/bench/run.py roofline)

The step is traced on tensors without numbers, in the dtypes and memory layouts that CUDA gives them. A kernel takes as
long as its bytes or its operations need, whichever is longer. `eager` has a kernel for each operation of the trace;
`fused` is what a compiler makes of it: whatever works value by value is computed where it is read, and only matrix
products, convolutions and attention want their inputs written. Launches, and waits between kernels, count nothing.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from elbocli.nn.networks import Network, NetworkConfig, build, place
from elbocli.run.preset_data import preset_data
from elbocli.run.settings import resolve
from elbocli.runtime.device import PRECISIONS
from elbocli.train.memory import as_autocast

MEMORY = 3.0e12
"""Bytes a second of an H100's memory, of the 3.35e12 on its data sheet."""
PEAK = {"bf16": 600e12, "tf32": 400e12, "fp32": 67e12}
"""Operations a second of large matrix products and convolutions."""
ATTENTION = {"flash": 300e12, "efficient": 100e12}
"""Operations a second of the two fused kernels of attention in half precision: flash of heads up to FLASH_MOST, the other
of any. Guesses, from what their authors publish for smaller heads."""
FLASH_MOST = 256
DEVICES = 8
"""Devices that share a preset's batch, so that each updates its weights once in so many images."""
IMAGES = 32
"""Images of a micro-batch."""
PRESETS = ("imagenet64", "imagenet256", "latents256")
WAYS = (("fp32", "fp32", False), ("tf32", "fp32", False), ("bf16", "bf16", False), ("bf16", "bf16", True))
"""(what multiplies, precision of the run, whether weights are sharded). Sharded weights come in the precision of the run,
and with channels first; what sharding sends takes no time here."""
INLINED = 4
"""Tensors that a fused kernel reads for one value before it is worth writing it down, as in torch's compiler."""

aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
CONVOLUTIONS = {aten.convolution: 2, aten.convolution_backward: 3}
"""Tensors among the first arguments that must have one memory layout."""
KERNELS = {
    aten._scaled_dot_product_flash_attention: "flash",
    aten._scaled_dot_product_flash_attention_backward: "flash",
    aten._scaled_dot_product_efficient_attention: "efficient",
    aten._scaled_dot_product_efficient_attention_backward: "efficient",
}
REDUCTIONS = {aten.sum, aten.mean, aten.var_mean, aten.linalg_vector_norm, aten.embedding_dense_backward}
TWICE = {aten.native_group_norm: 1, aten.native_group_norm_backward: 2}
"""Tensors among the first arguments that are read for statistics, and again for each value."""
COPIES = ("aten::contiguous", "aten::clone")
Value = tuple[int, int]
"""A tensor's storage, and how often it had been written to."""


@dataclass
class Kernel:
    """One kernel: bytes of each value that it reads and writes. statistics: values that it reads once more, before."""

    name: str
    kind: str
    reads: dict[Value, int]
    writes: dict[Value, int]
    flops: int = 0
    rate: float = PEAK["fp32"]
    statistics: dict[Value, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes that pass between it and the memory."""
        return sum(sum(each.values()) for each in (self.reads, self.writes, self.statistics))

    @property
    def seconds(self) -> float:
        """Time, by whichever bounds it."""
        return max(self.bytes / MEMORY, self.flops / self.rate)


class Trace(TorchDispatchMode):
    """Kernels of what runs inside it on meta tensors, laid out as on CUDA. multiplying: a key of PEAK, for float32."""

    def __init__(self, multiplying: str):
        super().__init__()
        self.kernels: list[Kernel] = []
        self._rate = PEAK[multiplying]
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._written: defaultdict[int, int] = defaultdict(int)

    def value(self, tensor: Tensor) -> tuple[Value, int]:
        """(the value that it holds now, bytes of it that are touched)."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._storages[key] = storage  # kept, so that no other gets its name
        return (key, self._written[key]), min(tensor.numel() * tensor.itemsize, storage.nbytes())

    def _values(self, *trees: Any) -> dict[Value, int]:
        found: dict[Value, int] = {}
        for each in tree_leaves(trees):
            if isinstance(each, Tensor):
                value, size = self.value(each)
                found[value] = max(size, found.get(value, 0))
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        layout = torch.preserve_format
        if packet in CONVOLUTIONS:
            count = CONVOLUTIONS[packet]
            layout = _layout(args[count - 2 : count])
            with self:
                args = (*(each.contiguous(memory_format=layout) for each in args[:count]), *args[count:])
        reads = self._values(args, kwargs)
        out = tree_map_only(Tensor, partial(_laid_out, layout), func(*args, **kwargs))
        tensors = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        changed = [each for each in tensors if func._schema.is_mutable or each.untyped_storage()._cdata not in given]
        if not changed or packet in (aten.empty, aten.empty_like, aten.empty_strided):
            return out  # a view, or nothing yet
        for each in changed:
            storage = each.untyped_storage()._cdata
            if storage in given:
                reads.pop((storage, self._written[storage]), None) if "out" in kwargs else None
                self._written[storage] += 1
        statistics = self._values(args[: TWICE[packet]]) if packet in TWICE else {}
        kernel = Kernel(packet._qualified_op_name, "pointwise", reads, self._values(changed), statistics=statistics)
        first = next(each for each in tree_leaves((args, out)) if isinstance(each, Tensor))
        half = first.dtype in (torch.bfloat16, torch.float16)
        if packet in PRODUCTS or packet in KERNELS:
            kernel.kind, kernel.flops = "product", flop_registry[packet](*args, **kwargs, out_val=out)
            kernel.rate = (
                ATTENTION[KERNELS[packet]] if packet in KERNELS and half else PEAK["bf16"] if half else self._rate
            )
        elif packet in REDUCTIONS:
            kernel.kind = "reduction"
        self.kernels.append(kernel)
        return out


def _layout(tensors: Sequence[Tensor]) -> torch.memory_format:
    """The layout that cuDNN chooses for a convolution: channels last where one of input and weight has it."""
    last = any(each.stride(1) == 1 and each.stride(3) >= each.shape[1] for each in tensors)
    return torch.channels_last if last else torch.contiguous_format


def _laid_out(layout: torch.memory_format, tensor: Tensor) -> Tensor:
    """A meta tensor in a layout, which its own convolutions don't know; biases have none."""
    return (
        torch.empty_like(tensor, memory_format=layout)
        if tensor.dim() == 4 and layout != torch.preserve_format
        else tensor
    )


class Card(TorchFunctionMode):
    """Functions in the precision in which CUDA's autocast runs them, attention by the kernel that it takes."""

    def __init__(self, precision: str):
        super().__init__()
        self._dtype = PRECISIONS[precision]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._dtype != torch.float32:
            args = as_autocast(func, args, self._dtype, cuda=True)
        if func is F.scaled_dot_product_attention and all(each.stride(-1) == 1 for each in args):
            if args[0].itemsize == 2 and args[0].shape[-1] <= FLASH_MOST:
                return aten._scaled_dot_product_flash_attention(*args)[0]
            return aten._scaled_dot_product_efficient_attention(*args, None, True)[0]
        return func(*args, **(kwargs or {}))


def step(config: NetworkConfig, multiplying: str, precision: str, sharded: bool, images: int) -> list[Kernel]:
    """Forward and backward of a micro-batch, as the training step makes them."""
    with torch.device("meta"):
        network: Network = build(config)
        network.to(PRECISIONS[precision]) if sharded else place(network, torch.device("meta"))
        size = config.image_size
        x, eps = torch.empty(2, images, config.image_channels, size, size).unbind()
        x, eps = (each.contiguous(memory_format=torch.channels_last) for each in (x, eps))
        labels = torch.empty(images, dtype=torch.int64) if config.num_classes else None
        alpha, sigma = torch.empty(2, images, 1, 1, 1).unbind()
        with Trace(multiplying) as trace, Card(precision):
            z = torch.addcmul(alpha * x, sigma, eps).mul_(alpha)
            out = network(z, torch.empty(images), labels)
            loss = (torch.addcmul(alpha * x, sigma, eps) - out.float()).square().flatten(1).mean(1).sum()
            loss.backward()
    return trace.kernels


def update(network: nn.Module, averages: int) -> float:
    """Seconds of what comes once a step: the gradient's norm, fused AdamW, each average. All float32, all bound by memory."""
    values = sum(parameter.numel() for parameter in network.parameters())
    return (1 + 7 + 3 * averages) * 4 * values / MEMORY


def fused(kernels: list[Kernel]) -> Iterator[Kernel]:
    """Kernels that a compiler would leave of them. It chooses layouts itself, so that a copy into another is none."""
    kernels, stores = list(_without_copies(kernels)), list[Kernel]()
    wanted = {value for kernel in kernels if kernel.kind == "product" for value in kernel.reads}
    users = defaultdict[Value, int](int)
    for kernel in kernels:
        for value in kernel.reads:
            users[value] += 1
    inlined: dict[Value, dict[Value, int]] = {}

    def outer(values: dict[Value, int]) -> dict[Value, int]:
        found: dict[Value, int] = {}
        for value, size in values.items():
            found |= inlined.get(value, {value: size})
        return found

    for kernel in kernels:
        if kernel.kind == "product":
            stores.append(kernel)
            continue
        reads = outer(kernel.reads)
        if kernel.statistics:
            stores.append(Kernel(kernel.name, "reduction", outer(kernel.statistics), {(id(kernel), 0): 0}))
            reads[id(kernel), 0] = 0
        for value, size in kernel.writes.items():
            used = users[value]
            big = sum(1 for each in reads.values() if each * 8 >= size)
            if kernel.kind == "reduction" or value in wanted or not used or (used > 1 and big > INLINED):
                stores.append(Kernel(kernel.name, kernel.kind, reads, {value: size}))
            else:
                inlined[value] = reads
    yield from _together(stores)


def _without_copies(kernels: list[Kernel]) -> Iterator[Kernel]:
    """Kernels that read, in place of a tensor's copy in another layout, the tensor."""
    same: dict[Value, Value] = {}

    def first(values: dict[Value, int]) -> dict[Value, int]:
        return {same.get(value, value): size for value, size in values.items()}

    for kernel in kernels:
        reads = first(kernel.reads)
        if kernel.name in COPIES and list(reads.values()) == list(kernel.writes.values()):
            same |= dict.fromkeys(kernel.writes, *reads)
        else:
            yield replace(kernel, reads=reads, statistics=first(kernel.statistics))


def _together(stores: list[Kernel]) -> Iterator[Kernel]:
    """Join what reads the same and waits for nothing of each other into kernels."""
    depth: dict[Value, int] = {}
    levels: defaultdict[int, list[Kernel]] = defaultdict(list)
    for each in stores:
        at = 1 + max((depth.get(value, 0) for value in each.reads), default=0)
        depth |= dict.fromkeys(each.writes, at)
        if each.kind == "product":
            yield each
            continue
        largest = max(each.reads.values(), default=0)
        for other in levels[at]:
            if any(size == largest and value in other.reads for value, size in each.reads.items()):
                other.reads, other.writes = other.reads | each.reads, other.writes | each.writes
                break
        else:
            levels[at].append(Kernel(each.name, each.kind, dict(each.reads), dict(each.writes)))
    for level in levels.values():
        yield from level


@dataclass(frozen=True)
class Bound:
    """The most images a second for one device, and where the time goes, in milliseconds of a step's share per image."""

    preset: str
    way: str
    images_per_s: float
    kernels: int
    gigabytes: float
    products_ms: float
    other_ms: float
    update_ms: float


def bounds(preset: str, images: int = IMAGES) -> Iterator[Bound]:
    """A preset's, in every way."""
    resolved = resolve({"preset": preset}, preset_data(preset))
    config = resolved.network
    with torch.device("meta"):
        once = update(build(config), len(resolved.settings.ema)) / (resolved.settings.batch / DEVICES)
    for multiplying, precision, sharded in WAYS:
        trace = step(config, multiplying, precision, sharded, images)
        for way, kernels in (("eager", trace), ("fused", list(fused(trace)))):
            products = sum(each.seconds for each in kernels if each.kind == "product") / images
            other = sum(each.seconds for each in kernels if each.kind != "product") / images
            size = sum(each.bytes for each in kernels) / images / 1e9
            parts = (1e3 * part for part in (products, other, once))
            name = f"{multiplying}{' sharded' if sharded else ''} {way}"
            yield Bound(preset, name, 1 / (products + other + once), len(kernels), size, *parts)


LINE = "{:<12} {:<18} {:>9} {:>8} {:>9} {:>12} {:>9} {:>10}"


def main(names: list[str], as_json: bool) -> None:
    """Print a table, or a list of objects."""
    found = [bound for name in names or PRESETS for bound in bounds(name)]
    if as_json:
        print(json.dumps([asdict(bound) for bound in found], indent=1))
        return
    print(LINE.format("preset", "way", "images/s", "kernels", "GB/image", "products ms", "other ms", "update ms"))
    for bound in found:
        _, _, rate, kernels, *parts = asdict(bound).values()
        print(LINE.format(bound.preset, bound.way, f"{rate:.0f}", kernels, *(f"{part:.3f}" for part in parts)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"{', '.join(PRESETS)} by default")
    parser.add_argument("--json", action="store_true", help="a list of objects")
    options = parser.parse_args()
    main(options.presets, options.json)

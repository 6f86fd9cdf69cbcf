"""Tensors that say cuda:0 or cuda:1 and are computed on the CPU, and what a CUDA device would make of each call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretend.cards import Card, drawn_by, is_pinned, pin
from pretend.records import Records
from pretend.shim import shim

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
"""Operations whose result, or its size, the host must know."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
MULTIPLYING = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
CONVOLVING = {aten.convolution.default, aten.convolution_backward.default}
DATA: Any = torch.Tensor.data
"""The descriptor of a tensor's values."""


class PretendTensor(torch.Tensor):
    """A tensor on a card. twin: the same on the CPU, where it is computed."""

    twin: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> PretendTensor:
        layout: Any = {"strides": real.stride(), "storage_offset": real.storage_offset(), "layout": real.layout}
        made = torch.Tensor._make_wrapper_subclass(cls, real.size(), dtype=real.dtype, device=device, **layout)
        made.twin = real
        return made

    def __init__(self, real: Tensor, device: torch.device):
        pass

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.twin.detach()!r} on {self.device}"

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """Values, of which autograd knows nothing."""
        return DATA.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        DATA.__set__(self, value)
        self.twin = _real(value)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return Calls.now.call(func, args, kwargs or {})


class Calls(TorchDispatchMode):
    """Every operation, while it is entered. waits, copies, rounded: what is found out, see Pretence."""

    now: Calls

    def __init__(self, cards: tuple[Card, ...], waits: Records, copies: Records, rounded: Records):
        super().__init__()
        self.cards = cards
        self.waits = waits
        self.copies = copies
        self.rounded = rounded
        self.capture: list[Callable[[], None]] | None = None
        """What a CUDA graph that is being captured has to do again."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _composite(func):
            with self:  # what it is made of is looked at, as where gradients are wanted
                return func.decompose(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do an operation where it belongs. Raises RuntimeError when its tensors are not all on one device."""
        tensors = list(_tensors([*args, *kwargs.values()]))
        asked = kwargs.get("device")
        target = None if asked is None else self._indexed(torch.device(asked))
        homes = {tensor.device for tensor in tensors if isinstance(tensor, PretendTensor)}
        if not homes and (target is None or target.type != "cuda"):
            pinned = kwargs.pop("pin_memory", None)
            out = func(*args, **kwargs)
            return pin(out) if pinned else out
        if func is aten._to_copy.default:
            return self._moved(args[0], target or args[0].device, kwargs)
        if func is aten.copy_.default:
            return self._copied(*args, **kwargs)
        if func is aten._fused_sdp_choice.default:
            return int(torch.nn.attention.SDPBackend.MATH.value)
        home = self._home(func, homes, target, tensors, args)
        self._look(func, args)
        plain = {name: _real(value) for name, value in kwargs.items() if name not in ("device", "pin_memory")}
        if target is not None:
            plain["device"] = torch.device("cpu")

        def do() -> Any:
            return func(*map(_real, args), **plain)

        card = self.cards[home.index]
        work = partial(drawn_by, card, do) if torch.Tag.nondeterministic_seeded in func.tags else do
        # A view of a tensor that is no inference tensor is none either.
        plain_view = torch.is_inference_mode_enabled() and _views(func) and not args[0].is_inference()
        with torch.inference_mode(False) if plain_view else nullcontext():
            return self._wrapped(func, self._done(work), args, kwargs, card)

    def _done(self, work: Callable[[], Any]) -> Any:
        """Do it; the graph that is being captured does it again, to the same tensors."""
        out = work()
        if self.capture is not None:
            self.capture.append(lambda: _overwrite(out, work()))
        return out

    def _indexed(self, device: torch.device) -> torch.device:
        if device.type != "cuda":
            return device
        index = shim().current_card() if device.index is None else device.index
        if index >= len(self.cards):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def _home(
        self, func: Any, homes: set[torch.device], target: torch.device | None, tensors: list[Tensor], args: Any
    ) -> torch.device:
        """The card that an operation runs on."""
        strangers = [t for t in tensors if not isinstance(t, PretendTensor) and t.dim()]
        if strangers and func in INDEXING and isinstance(args[0], PretendTensor):
            self.copies.note("indices that are not on the device")
            self.waits.note("indices that are not on the device")
            strangers = [t for t in strangers if t is args[0] or (len(args) > 2 and t is args[2])]
        if (strangers and homes) or len(homes) > 1:
            found = sorted({str(tensor.device) for tensor in tensors})
            raise RuntimeError(f"expected all tensors of {func} to be on the same device, found {', '.join(found)}")
        home = target or next(iter(homes))
        if home.type != "cuda":
            raise RuntimeError(f"{func} makes a tensor on {home} of one on {next(iter(homes))}")
        return home

    def _look(self, func: Any, args: Any) -> None:
        """Take note of what makes the host wait, and of what is rounded to TF32."""
        if func in WAITING:
            self.waits.note(f"{func}")
        if func in INDEXING and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.waits.note(f"{func} by booleans")
        tf32 = func in MULTIPLYING and torch.backends.cuda.matmul.allow_tf32
        tf32 |= func in CONVOLVING and torch.backends.cudnn.allow_tf32
        sizes = [list(each.shape) for each in args if isinstance(each, Tensor) and each.dtype == torch.float32]
        if tf32 and sizes:
            self.rounded.note(f"{func} of {' and '.join(map(str, sizes))}")

    def _moved(self, source: Tensor, target: torch.device, kwargs: dict[str, Any]) -> Tensor:
        """`to`: another device, another dtype or another layout."""
        plain = {**kwargs, "device": torch.device("cpu"), "non_blocking": False}
        made = self._done(lambda: aten._to_copy.default(_real(source), **plain))
        if not isinstance(source, PretendTensor):
            self._to_card(source, kwargs.get("non_blocking", False))
        elif target.type == "cpu":
            if not kwargs.get("non_blocking", False):
                return self._waited(source, made)
            host = pin(made)
            self.cards[source.device.index].send(host, made)
            return host
        return self._on(made, self.cards[target.index])

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """`copy_`."""
        if isinstance(target, PretendTensor):
            if not isinstance(source, PretendTensor):
                self._to_card(source, non_blocking)
            self._done(lambda: target.twin.copy_(_real(source)))
        elif non_blocking and is_pinned(target):
            self.cards[source.device.index].send(target, _real(source))
        else:
            target.copy_(self._waited(source, _real(source)))
        return target

    def _to_card(self, source: Tensor, non_blocking: bool) -> None:
        if not source.numel():
            return
        size = f"{source.numel() * source.element_size()} bytes to the device"
        if not is_pinned(source):
            self.copies.note(f"{size} from memory that isn't pinned")
        if not non_blocking:
            self.waits.note(f"{size}, blocking")

    def _waited(self, source: Tensor, value: Tensor) -> Tensor:
        self.waits.note(f"{source.numel() * source.element_size()} bytes to the host")
        self.cards[source.device.index].arrive()
        return value

    def _on(self, real: Tensor, card: Card) -> PretendTensor:
        card.made += real.numel() * real.element_size()
        return PretendTensor(real, card.device)

    def _wrapped(self, func: Any, out: Any, args: Any, kwargs: dict[str, Any], card: Card) -> Any:
        """Results as the card's; what was changed in place is the tensor that was given."""
        if isinstance(out, Tensor):
            return self._returned(out, _changed(func)[:1], args, kwargs, card)
        if isinstance(out, tuple | list):
            changed = _changed(func)
            parts = (
                self._returned(each, changed[k : k + 1], args, kwargs, card)
                if isinstance(each, Tensor)
                else self._wrapped(func, each, args, kwargs, card)
                for k, each in enumerate(out)
            )
            return type(out)(parts)
        return out

    def _returned(self, out: Tensor, changed: list[int | str | None], args: Any, kwargs: dict[str, Any], card: Card) -> Tensor:
        where = changed[0] if changed else None
        if where is None:
            return self._on(out, card)
        given: Tensor = args[where] if isinstance(where, int) and where < len(args) else kwargs[str(where)]
        assert given.shape == out.shape, "a shape that changes in place can't be followed"
        return given


@cache
def _composite(func: Any) -> bool:
    """Tell whether a device has no code of its own for it."""
    of = func.name()
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(of, "CompositeImplicitAutograd") and not has(of, "CPU")


@cache
def _views(func: Any) -> bool:
    """Tell whether its results lie in the memory of what it is given, and are not the same tensors."""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)


@cache
def _changed(func: Any) -> list[int | str | None]:
    """Return for each result the position or name of the argument that it is; None: a new tensor."""
    found: list[int | str | None] = []
    for result in func._schema.returns:
        alias = result.alias_info
        place = None
        if alias is not None and alias.is_write:
            for position, argument in enumerate(func._schema.arguments):
                same = argument.alias_info is not None and argument.alias_info.before_set == alias.before_set
                if same and argument.alias_info.is_write:
                    place = argument.name if argument.kwarg_only else position
        found.append(place)
    return found


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _overwrite(out: Any, again: Any) -> None:
    """Give the tensors of a result the values of the same result of another time."""
    for old, new in zip(_tensors([out]), _tensors([again]), strict=True):
        if old is not new:
            old.copy_(new)


def _real(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.twin
    return type(value)(map(_real, value)) if isinstance(value, tuple | list) else value


def methods() -> dict[str, Any]:
    """Return what takes the place of methods of torch.Tensor that don't come by as operations."""
    to_list = torch.Tensor.tolist
    to_numpy = torch.Tensor.numpy

    def tolist(self: Tensor) -> Any:
        return to_list(self.cpu() if isinstance(self, PretendTensor) else self)

    def numpy(self: Tensor, **options: Any) -> Any:
        if isinstance(self, PretendTensor):
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        return to_numpy(self, **options)

    def pin_memory(self: Tensor, device: Any = None) -> Tensor:
        if isinstance(self, PretendTensor):
            raise RuntimeError("cannot pin memory of another device than the CPU")
        return pin(self)

    def pinned(self: Tensor, device: Any = None) -> bool:
        return is_pinned(self)

    return {"tolist": tolist, "numpy": numpy, "pin_memory": pin_memory, "is_pinned": pinned}

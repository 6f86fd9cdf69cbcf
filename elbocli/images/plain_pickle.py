"""Pickles of plain data: dicts, lists, tuples, text, bytes, whole numbers and numpy's arrays of bytes.

A pickle is a program, and Python's own unpickler calls whatever the program names. This reader has no way to call
anything: it knows the steps that plain data take, compares the names that occur with five of numpy's, and refuses the
rest. An array's bytes are checked against its shape before numpy sees them.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from elbocli.errors import FormatError
from elbocli.files.reading import refusing

VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NOTHING = {"PROTO", "FRAME"}
RECONSTRUCT, NDARRAY, DTYPE, ENCODE = "_reconstruct", "ndarray", "dtype", "encode"
NAMES = {
    "numpy.core.multiarray _reconstruct": RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": RECONSTRUCT,
    "numpy ndarray": NDARRAY,
    "numpy dtype": DTYPE,
    "_codecs encode": ENCODE,
}
"""All the names that may occur: of an array, of its type, and of bytes as Python 3 writes them for Python 2."""


@dataclass(frozen=True)
class _Name:
    name: str


class _ByteType:
    """The type uint8, the only one an array may have."""


class PickledArray:
    """An array of bytes, found in a pickle. pixels: uint8, of any shape."""

    pixels: np.ndarray = np.zeros(0, np.uint8)

    def build(self, state: Any) -> None:
        """Fill it with numpy's (version, shape, type, whether by columns, bytes). Raises FormatError."""
        _, shape, kind, by_columns, content = state
        content = content.encode("latin-1") if isinstance(content, str) else content
        sizes = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        if not (sizes and isinstance(kind, _ByteType) and type(content) is bytes and math.prod(shape) == len(content)):
            raise FormatError("it has an array whose shape, type and bytes don't belong together")
        self.pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


class _Machine:
    """Takes the steps of a pickle. above: the stacks below each mark that is open."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.above: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, value: Any) -> None:
        """Take one step, by its name in pickletools. Raises FormatError for one that plain data don't take."""
        stack = self.stack
        if name in VALUES:
            stack.append(value)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "MARK":
            self.above.append(stack)
            self.stack = []
        elif name == "TUPLE":
            self._unmark().append(tuple(stack))
        elif name == "APPEND":
            self._extend([stack.pop()])
        elif name == "APPENDS":
            self._unmark()
            self._extend(stack)
        elif name == "SETITEM":
            item = stack.pop()
            self._update([stack.pop(), item])
        elif name == "SETITEMS":
            self._unmark()
            self._update(stack)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[value] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[value])
        elif name == "GLOBAL":
            self._name(value)
        elif name == "STACK_GLOBAL":
            last = stack.pop()
            self._name(f"{stack.pop()} {last}")
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(stack.pop(), arguments))
        elif name == "BUILD":
            self._build(stack.pop())
        elif name not in NOTHING:
            raise FormatError(f"it takes a step that plain data don't ({name})")

    def _unmark(self) -> list[Any]:
        """Return to the stack below the last mark."""
        self.stack = self.above.pop()
        return self.stack

    def _extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise FormatError("it extends what is no list")
        self.stack[-1].extend(values)

    def _update(self, pairs: list[Any]) -> None:
        keys = pairs[::2]
        if (
            type(self.stack[-1]) is not dict
            or len(pairs) % 2
            or not all(type(key) in (str, bytes, int) for key in keys)
        ):
            raise FormatError("it fills what is no dict, or has keys that are no text")
        self.stack[-1].update(zip(keys, pairs[1::2], strict=True))

    def _name(self, name: str) -> None:
        if name not in NAMES:
            raise FormatError(f"it names {name[:80].replace(' ', '.')!r}, which isn't plain data")
        self.stack.append(_Name(NAMES[name]))

    def _build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, PickledArray):
            target.build(state)
        elif not isinstance(target, _ByteType):
            raise FormatError("it fills what isn't an array")


def _made(name: Any, arguments: Any) -> Any:
    """Make what a name with arguments stands for. Raises FormatError for anything but an array, its type, and bytes."""
    made = name.name if isinstance(name, _Name) else ""
    if made == RECONSTRUCT and arguments[0] == _Name(NDARRAY):
        return PickledArray()
    if made == DTYPE and arguments[0] in ("u1", b"u1"):
        return _ByteType()
    if made == ENCODE and arguments[1:] == ("latin1",):
        return arguments[0].encode("latin-1")
    if made == DTYPE:
        raise FormatError(f"it has an array of {str(arguments[0])[:20]!r}, expected bytes ('u1')")
    raise FormatError("it calls something")


def read_plain(file: IO[bytes]) -> Any:
    """Read a pickle of protocol 2 to 4 that holds plain data; its arrays are PickledArrays. Never runs anything.

    Text of Python 2 is read as Latin-1. Raises FormatError for anything else.
    """
    machine = _Machine()
    with refusing("it is damaged"):
        for code, value, _ in pickletools.genops(file):
            if code.name == "STOP":
                (result,) = machine.stack
                return result
            machine.step(code.name, value)
    raise FormatError("it has no end")

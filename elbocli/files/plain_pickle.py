"""Pickles read without an unpickler: a machine that takes the steps of a pickle, and what plain data mean to it.

A pickle is a program, and Python's own unpickler calls whatever the program names. This machine has no way to call
anything: a name that occurs stands for what a table of ours makes of it, or is refused. Plain data are dicts, lists,
tuples, text, bytes, whole numbers and numpy's arrays of bytes, which are made anew of their shape and their bytes.
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
        if not (sizes and isinstance(kind, _ByteType) and type(content) is bytes):
            raise FormatError("it has an array whose shape, type and bytes don't belong together")
        self.pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


class Machine:
    """Takes the steps of a pickle, those of plain data; a reader of more overrides what it takes beside.

    above: the stacks below each mark that is open. most: the number of steps that a pickle may take.
    """

    values = VALUES
    most = math.inf

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.above: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def read(self, file: IO[bytes]) -> Any:
        """Read one pickle, and leave the file behind its end. Never runs anything. Raises FormatError."""
        with refusing("it is damaged"):
            for number, (code, value, _) in enumerate(pickletools.genops(file)):
                if code.name == "STOP":
                    (result,) = self.stack
                    return result
                if number >= self.most:
                    raise FormatError(f"it takes more than {self.most} steps")
                self.step(code.name, value)
        raise FormatError("it has no end")

    def step(self, name: str, value: Any) -> None:
        """Take one step, by its name in pickletools. Raises FormatError for one that isn't known."""
        stack = self.stack
        if name in self.values:
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
            self.unmark().append(tuple(stack))
        elif name == "APPEND":
            self.extend([stack.pop()])
        elif name == "APPENDS":
            self.unmark()
            self.extend(stack)
        elif name == "SETITEM":
            item = stack.pop()
            self.update([stack.pop(), item])
        elif name == "SETITEMS":
            self.unmark()
            self.update(stack)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[value] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[value])
        elif name == "GLOBAL":
            stack.append(self.named(value))
        elif name == "STACK_GLOBAL":
            last = stack.pop()
            stack.append(self.named(f"{stack.pop()} {last}"))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self.called(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            self.build(stack[-1], state)
        elif name not in NOTHING:
            raise FormatError(f"it takes a step that plain data don't ({name})")

    def unmark(self) -> list[Any]:
        """Return to the stack below the last mark."""
        self.stack = self.above.pop()
        return self.stack

    def extend(self, values: list[Any]) -> None:
        """Add to the list on top of the stack. Raises FormatError."""
        if type(self.stack[-1]) is not list:
            raise FormatError("it extends what is no list")
        self.stack[-1].extend(values)

    def update(self, pairs: list[Any]) -> None:
        """Fill the dict on top of the stack with keys and values by turns. Raises FormatError."""
        if type(self.stack[-1]) is not dict:
            raise FormatError("it fills what is no dict")
        self.stack[-1].update(keyed(pairs))

    def named(self, name: str) -> Any:
        """Return what stands for a name, `module name`. Raises FormatError for one that isn't plain data's."""
        if name not in NAMES:
            raise FormatError(f"it names {name[:80].replace(' ', '.')!r}, which isn't plain data")
        return _Name(NAMES[name])

    def called(self, name: Any, arguments: Any) -> Any:
        """Return what stands for a call. Raises FormatError for one of anything but an array, its type, and bytes."""
        return _made(name, arguments)

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state. Raises FormatError."""
        if isinstance(target, PickledArray):
            target.build(state)
        elif not isinstance(target, _ByteType):
            raise FormatError("it fills what isn't an array")


def keyed(pairs: list[Any]) -> dict[Any, Any]:
    """Return a dict of keys and values by turns. Raises FormatError for keys that are neither text nor whole numbers.

    Others could take for ever to compare, or end the process by their depth.
    """
    keys = pairs[::2]
    if len(pairs) % 2 or not all(type(key) in (str, bytes, int) for key in keys):
        raise FormatError("it has keys that are no text")
    return dict(zip(keys, pairs[1::2], strict=True))


def _made(name: Any, arguments: Any) -> Any:
    """Make what a name with arguments stands for. Raises FormatError for anything but an array, its type, and bytes."""
    made = name.name if isinstance(name, _Name) else ""
    if made == RECONSTRUCT:
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
    return Machine().read(file)

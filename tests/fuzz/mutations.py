"""Damage that knows a format: each mutation changes a good file so that its outer form mostly still stands.

A mutation is a function (random, path). Everything is drawn from the Random that it is given, so a seed repeats it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import yaml

Mutation = Callable[[Random, Path], None]
ODD_NUMBERS = [0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30]
ODD_TEXTS = [
    "",
    " ",
    "\n",
    "nan",
    "inf",
    "1_000",
    "x" * 5000,
    "\x1b[31m",
    "\u202e",
    "é\ud800",
    "../x",
    "/dev/zero",
    "{}",
    "a:b=c@d",
]
ODD: list[Any] = [None, True, *ODD_NUMBERS, float("nan"), float("inf"), *ODD_TEXTS, [], {}, [[]], [0] * 3000, {"": {}}]


def any_bytes(random: Random, content: bytes) -> bytes:
    """Bytes with one to three places overwritten, cut out, doubled, put in or cut off."""
    found = bytearray(content)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(found) + 1)
        if random.random() < 0.5:  # formats say of themselves at their beginning what matters
            at = min(at, random.randrange(512))
        length = random.choice([1, 1, 2, 4, 8, 64, 1000])
        kind = random.randrange(7)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << random.randrange(8)
        elif kind == 1:
            found[at : at + length] = random.randbytes(length)
        elif kind == 2:
            found[at : at + length] = bytes([random.choice([0, 0xFF])]) * length
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length] * random.choice([1, 2, 50])
        elif kind == 5:
            found[at:at] = random.randbytes(length)
        else:
            del found[at:]
    return bytes(found)


def flip(random: Random, path: Path) -> None:
    """Damage the bytes of any file."""
    path.write_bytes(any_bytes(random, path.read_bytes()))


def sealed(mutation: Mutation) -> Mutation:
    """The same damage of a checkpoint's file by one who then puts its digest right in meta.json."""

    def damage(random: Random, path: Path) -> None:
        mutation(random, path)
        meta = json.loads((path.parent / "meta.json").read_text())
        content = path.read_bytes()
        meta["files"][path.name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path.parent / "meta.json").write_text(json.dumps(meta))

    return damage


def swap(random: Random, path: Path) -> None:
    """Put another good file of the folder in its place."""
    others = sorted(each for each in path.parent.iterdir() if each.is_file() and each != path)
    if others:
        path.write_bytes(random.choice(others).read_bytes())


def any_tree(random: Random, tree: Any) -> Any:
    """A tree of lists, dicts and values with one to three of its places changed."""
    for _ in range(random.randint(1, 3)):
        places: list[tuple[Any, Any]] = []

        def walk(node: Any, places: list[tuple[Any, Any]] = places) -> None:
            keys = range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
            for key in [*keys][:200]:
                places.append((node, key))
                walk(node[key])

        walk(tree)
        if not places or random.random() < 0.02:
            return random.choice(ODD)
        node, key = random.choice(places)
        value, kind = node[key], random.randrange(8)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[random.choice([f"{key}x", "", "new", "format", 7])] = node.pop(key)
        elif kind == 2:
            node[key] = [value] * random.choice([0, 1, 2, 3000])
        elif kind == 3:
            node[key] = {str(key): value}
        elif kind == 4 and isinstance(value, (int, float)):
            node[key] = random.choice([-value, value * 10**6, value + 0.5, str(value), value / 7])
        elif kind == 5 and isinstance(value, str):
            node[key] = value[: len(value) // 2] + random.choice(ODD_TEXTS) + value[len(value) // 2 :]
        else:
            node[key] = random.choice(ODD)
    return tree


def json_tree(random: Random, path: Path) -> None:
    """Change the value of a JSON file."""
    path.write_text(json.dumps(any_tree(random, json.loads(path.read_text()))))


def json_line(random: Random, path: Path) -> None:
    """Change, double, drop or cut a line of a file of JSON lines."""
    lines = path.read_text().splitlines()
    at, kind = random.randrange(len(lines)), random.randrange(6)
    if kind == 0:
        lines.insert(at, random.choice(lines))
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        lines[at] = lines[at][: random.randrange(len(lines[at]) + 1)]
    else:
        lines[at] = json.dumps(any_tree(random, json.loads(lines[at])))
    path.write_text("\n".join(lines) + random.choice(["\n", ""]))


def yaml_tree(random: Random, path: Path) -> None:
    """Change the value of a YAML file, which JSON is too."""
    tree = any_tree(random, yaml.safe_load(path.read_text()))
    text = json.dumps(tree) if random.random() < 0.5 else yaml.safe_dump(tree, allow_unicode=random.random() < 0.5)
    path.write_text(text, errors="replace")


def hdf5(random: Random, path: Path) -> None:
    """Change an attribute or a member of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        for _ in range(random.randint(1, 2)):
            names: list[str] = []
            file.visit(names.append)
            owner = file if not names or random.random() < 0.6 else file[random.choice(names)]
            if owner is file and random.random() < 0.6 and owner.attrs:
                key, kind = random.choice(sorted(owner.attrs)), random.randrange(4)
                value = owner.attrs[key]
                del owner.attrs[key]
                if kind == 1:
                    owner.attrs[key] = h5py.Empty("f4")
                elif kind == 2 and isinstance(value, str):
                    tree = any_tree(random, json.loads(value)) if value[:1] == "{" else value + random.choice(ODD_TEXTS)
                    _attribute(owner, key, json.dumps(tree) if isinstance(tree, dict) else tree)
                elif kind == 3:
                    _attribute(owner, key, random.choice(ODD))
            elif names:
                name, kind = random.choice(names), random.randrange(6)
                if not isinstance(file[name], h5py.Dataset):
                    continue
                rows = file[name][()]
                del file[name]
                if kind == 1 and isinstance(rows, np.ndarray) and rows.shape:
                    file[name] = rows[: random.randrange(len(rows) + 1)]
                elif kind == 2 and isinstance(rows, np.ndarray):
                    file[name] = rows[None] if random.random() < 0.5 else rows.reshape(-1)
                elif kind == 3:
                    file[name] = np.asarray(random.choice(ODD_NUMBERS[:8]))
                elif kind == 4 and getattr(rows, "dtype", np.dtype("O")).kind in "iuf":
                    changed = rows.astype(random.choice(["i1", "i8", "u8", "f2", "f8", "c8", "S3"]))
                    if changed.size and changed.dtype.kind == "f":
                        changed.flat[random.randrange(changed.size)] = random.choice([np.nan, np.inf, -1e30])
                    file[name] = changed
                elif kind == 5:
                    file.create_group(name)


def _attribute(owner: Any, key: str, value: Any) -> None:
    try:
        owner.attrs[key] = value
    except (TypeError, ValueError, OverflowError, OSError):  # what HDF5 holds not at all
        owner.attrs[key] = np.int64(-1)


def npy(random: Random, path: Path) -> None:
    """Change the header of a .npy file, or how much follows it."""
    content = path.read_bytes()
    length = struct.unpack("<H", content[8:10])[0]
    header, body = content[10 : 10 + length].decode(), content[10 + length :]
    kind = random.randrange(6)
    if kind == 0:
        header = header.replace("False", "True")
    elif kind == 1:
        new = random.choice(["|O", "<f8", ">i2", "<U9", "|V8", "<c16", "<M8[ns]", "|S0", "[('a','<i8')]"])
        header = header.replace(header.split("'descr': ")[1].split(",")[0], new if new[0] == "[" else f"'{new}'")
    elif kind == 2:
        shape = random.choice([(), (0,), (-1, 8), (10**12, 8, 8, 3), (2**63,), (1,) * 40, (12, 8, 8)])
        header = header[: header.index("'shape'")] + f"'shape': {shape}, }}"
    elif kind == 3:
        header = random.choice(["", "{", "{}", "[" * 200, "__import__('os')", header + header, "{'descr': 1}"])
    elif kind == 4:
        body = body[: random.randrange(len(body) + 1)]
    else:
        header = any_bytes(random, header.encode()).decode("latin-1")
    packed = header.encode("latin-1")[:65000].ljust(length)
    path.write_bytes(content[:8] + struct.pack("<H", len(packed)) + packed + body)


def members(random: Random, path: Path) -> None:
    """Change, rename, double or leave out a member of a zip file, whose digests stand."""
    with zipfile.ZipFile(path) as file:
        found = [(info.filename, file.read(info)) for info in file.infolist()]
    at, kind = random.randrange(len(found)), random.randrange(5)
    name, content = found[at]
    if kind == 0:
        del found[at]
    elif kind == 1:
        found[at] = random.choice(["", "../x", "/x", "x" * 300, name + ".npy"]) or "x/", content
    elif kind == 2:
        found.insert(at, (name, random.choice(found)[1]))
    elif kind == 3 and content[:6] == b"\x93NUMPY":
        inside = path.with_name("inside.npy")
        inside.write_bytes(content)
        npy(random, inside)
        found[at] = name, inside.read_bytes()
        inside.unlink()
    else:
        found[at] = name, any_bytes(random, content)
    how = zipfile.ZIP_DEFLATED if random.random() < 0.2 else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", how) as file:
        for name, content in found:  # some of them twice
            file.writestr(zipfile.ZipInfo(name), content, how)


def tensors(random: Random, path: Path) -> None:
    """Change the header of a file of safetensors, or how much follows it."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, body = content[8 : 8 + length], content[8 + length :]
    if random.random() < 0.8:
        header = json.dumps(any_tree(random, json.loads(header))).encode()
    else:
        body = any_bytes(random, body)
    said = random.choice([len(header)] * 8 + [0, length + 1, 2**40, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", said) + header + body)

"""Small files in the formats that MNIST, CIFAR and Hugging Face's data sets are published in, written byte by byte."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES100 = [f"class_{number:02d}" for number in range(100)]


def noise(count: int, seed: int = 0, shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    """Random pixels, uint8 [count, *shape]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def labels_of(count: int, classes: int = 10) -> list[int]:
    """Labels in no particular order."""
    return [7 * index % classes for index in range(count)]


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    """An IDX file of uint8 values."""
    return bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def mnist(folder: Path, name: str = "train", count: int = 12, packed: bool = True, seed: int = 0) -> np.ndarray:
    """Write the two files of a part of MNIST. Returns the images, uint8 [count, 28, 28, 1]."""
    folder.mkdir(exist_ok=True, parents=True)
    images, suffix = noise(count, seed, (28, 28)), ".gz" if packed else ""
    for kind, values in (("images-idx3", images), ("labels-idx1", np.array(labels_of(count), np.uint8))):
        content = idx(values)
        (folder / f"{name}-{kind}-ubyte{suffix}").write_bytes(gzip.compress(content) if packed else content)
    return images[..., None]


def planes(images: np.ndarray) -> np.ndarray:
    """CIFAR's rows: the red, the green and the blue plane, uint8 [N, 3072]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def binary_batch(images: np.ndarray, classes: int = 10) -> bytes:
    """A binary batch of CIFAR-10 or CIFAR-100."""
    labels = labels_of(len(images), classes)
    heads = [bytes([label]) if classes == 10 else bytes([label // 5, label]) for label in labels]
    return b"".join(head + row.tobytes() for head, row in zip(heads, planes(images), strict=True))


def _short(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode("latin-1")


def _list(values: list[Any]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([v]) if isinstance(v, int) else _short(v) for v in values) + b"e"


def pickled_array(array: np.ndarray, kind: str = "u1") -> bytes:
    """An array as Python 2's pickle, protocol 2, writes one."""
    number = b"".join(b"M" + struct.pack("<H", side) for side in array.shape)
    content = b"T" + struct.pack("<I", array.nbytes) + array.tobytes()
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    kind_of = b"cnumpy\ndtype\n" + _short(kind) + b"K\0K\1\x87R(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    return made + b"(K\1" + number + (b"\x86" if array.ndim == 2 else b"\x85") + kind_of + b"\x89" + content + b"tb"


def pickled(**values: Any) -> bytes:
    """A dict as Python 2's pickle writes it: of lists, arrays of bytes and short text, in protocol 2."""
    out = b"\x80\2}q\1("
    for key, value in values.items():
        kinds = {np.ndarray: pickled_array, list: _list, str: _short}
        out += _short(key) + next(write(value) for kind, write in kinds.items() if isinstance(value, kind))
    return out + b"u."


def cifar10(folder: Path, batches: int = 2, count: int = 3) -> np.ndarray:
    """Write CIFAR-10's folder. Returns the training images, uint8 [batches · count, 32, 32, 3]."""
    folder.mkdir(parents=True)
    parts = [noise(count, seed) for seed in range(batches)]
    for number, part in enumerate(parts, 1):
        (folder / f"data_batch_{number}.bin").write_bytes(binary_batch(part))
    (folder / "test_batch.bin").write_bytes(binary_batch(noise(count, 99)))
    (folder / "readme.html").write_text("<html>")
    (folder / "batches.meta.txt").write_text("\n".join(NAMES10) + "\n\n")
    return np.concatenate(parts)


def cifar100(folder: Path, count: int = 5) -> np.ndarray:
    """Write CIFAR-100's folder. Returns the training images, uint8 [count, 32, 32, 3]."""
    folder.mkdir(parents=True)
    for name, seed in (("train", 0), ("test", 1)):
        (folder / f"{name}.bin").write_bytes(binary_batch(noise(count, seed), 100))
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES100))
    return noise(count, 0)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "png")
    return buffer.getvalue()


def parquet(path: Path, images: list[bytes | None], labels: list[int] | None, names: list[str] | None = None) -> None:
    """Write a file as Hugging Face's `datasets` does, in row groups of 4 rows."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    path.parent.mkdir(exist_ok=True, parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array([{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(images)], kind)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = {"_type": "ClassLabel", "names": names} if names else {"_type": "Value", "dtype": "int64"}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    write_table(table, path, row_group_size=4)

"""Files of tensors: safetensors, files of torch.save, averages of weights, and programs of torch.export.

Only loading a program can run code; elbo loads only programs that the user names.
"""

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from elbocli.errors import FormatError
from elbocli.files.atomic import new_file
from elbocli.files.reading import check_file, check_format, open_file, quiet, reading
from elbocli.files.records import Count, ExtraKeys, Record, parse_json, stored

AVERAGE = "elbo-ema"
DIGEST = "payload_sha256"
Layout = dict[str, tuple[str, tuple[int, ...]]]  # {tensor's name: (type such as F32, shape)}


class TensorFile:
    """A safetensors file, whose tensors are read on request. Raises FormatError."""

    def __init__(self, path: Path):
        self._reading = lambda: reading(f"{path}: not usable as safetensors")
        with self._reading():
            check_file(path)
            self._file: Any = safe_open(path, framework="pt")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            slices = {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118 (it has no iterator)
            self.layout: Layout = {key: (each.get_dtype(), tuple(each.get_shape())) for key, each in slices.items()}

    def read(self, key: str) -> Tensor:
        with self._reading():
            tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def all(self) -> dict[str, Tensor]:
        return {key: self.read(key).clone() for key in self.layout}


def load(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, by name. Raises FormatError."""
    return TensorFile(path).all()


def load_tensors(source: Path | io.BytesIO, name: str = "", mapped: bool = False) -> Any:
    """Load what torch.save wrote. Raises FormatError for other objects than tensors and plain values.

    name: file name for messages; "": the path. mapped: whether to map tensors instead of reading them.
    """
    what = name or source
    with reading(f"{what}: not a file of tensors"), quiet():
        if isinstance(source, Path):
            check_file(source)
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise FormatError(
                f"{what}: refused: holds more than tensors, so loading could run code; save only tensors"
            ) from error


@stored("`about` of an average (safetensors)", version=0)
class AverageFacts(Record):
    """Origin of averaged weights.

    spec: name and parameters of the average, such as `power:std=0.1`.
    std: standard deviation in time of a power average, relative to the step.
    residual: relative error of approximating the average by snapshots; 0: exact. command: command line.
    coefficients: coefficient of each snapshot's average; key: SNAPSHOT/AVERAGE. more: other keys.
    """

    spec: str
    std: float | None
    step: Count
    images: Count
    run: str | None
    run_id: str | None
    residual: float | None
    coefficients: dict[str, float] | None
    elbo_version: str | None
    command: str | None
    more: ExtraKeys = {}


def write_tensors(path: Path, tensors: dict[str, Tensor], kind: str, about: Record) -> str:
    """Write tensors to a safetensors file; return the sha256 of their bytes, which the file has, too. Raises DataError.

    kind: name of the format. about: how the tensors were made.
    """
    content = memoryview(save({key: value.contiguous() for key, value in tensors.items()}))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:end]))
    payload = content[end:]
    # The header is written here, because safetensors puts metadata in any order.
    meta = {"format": kind, "version": "1", "about": json.dumps(about.json(), allow_nan=False)}
    meta[DIGEST] = hashlib.sha256(payload).hexdigest()
    text = json.dumps({"__metadata__": meta, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(payload)
    return meta[DIGEST]


def read_average_facts(path: Path) -> tuple[AverageFacts, str]:
    """Return the origin and digest of averaged weights. Raises FormatError."""
    meta = TensorFile(path).metadata
    check_format(path, meta, AVERAGE, then="; make them with 'elbo ema'")
    what = f"{path}: doesn't say how it was made"
    return AverageFacts.of(parse_json(meta.get("about", ""), what), what), meta.get(DIGEST, "")


def check_tensors(path: Path) -> None:
    """Raise FormatError if the tensors that `write_tensors` wrote don't match the digest in their file."""
    with reading(path), open_file(path) as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != TensorFile(path).metadata.get(DIGEST):
        raise FormatError(f"{path}: damaged: its tensors don't match the digest in the file; make the file again")


def read_program(path: Path) -> torch.export.ExportedProgram:
    """Load a feature extractor, a program of torch.export, which may run code.

    Raises FormatError: not a program, or a program for a fixed batch size.
    """
    export = f"elbocli.export_extractor(network, images, {str(path)!r})"
    wrong = f"{path}: torch {torch.__version__} can't load it as a program of torch.export (.pt2)"
    with reading(wrong, f"; export it with this torch, by {export}"), open_file(path) as file, quiet():
        program = torch.export.load(file)
    # torch.export makes a program for batches of one size unless told otherwise.
    names = program.graph_signature.user_inputs
    inputs = (node.meta.get("val") for node in program.graph.nodes if node.name in names)
    shape = next((value.shape for value in inputs if isinstance(value, Tensor)), None)
    if shape and isinstance(shape[0], int):
        raise FormatError(f"{path}: takes only batches of {shape[0]} images; export the program for any batch size, by {export}")
    return program

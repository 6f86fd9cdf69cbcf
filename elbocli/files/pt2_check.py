"""A torch.export program (.pt2) from a stranger, loaded without letting it run anything but tensor operations.

torch.export.load itself unpickles, evaluates expressions and looks up functions by name. So the archive is read
by us, everything in it is checked against what a plain network needs, and torch sees only a copy that passed.

torch up to 2.7 wrote other parts, which later ones still read: the graph as JSON, and tensors as torch.save writes them.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from elbocli.errors import FormatError
from elbocli.files import strict_json
from elbocli.files.checkpoint import load_tensors
from elbocli.files.file_system import disk_bytes
from elbocli.files.reading import refusing
from elbocli.files.zip_files import make_zip, open_zip, read_member

RECORDS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|version|\.data/\w+"
)
GRAPH, OLD_GRAPH = "models/model.json", "serialized_exported_program.json"
OLD_WEIGHTS = ("serialized_state_dict.pt", "serialized_constants.pt")
OLD_RECORDS = (OLD_GRAPH, *OLD_WEIGHTS, "serialized_example_inputs.pt", "version")
OPERATOR = re.compile(
    r"torch\.ops\.aten\.[A-Za-z_]\w*\.\w+|_operator\.(getitem|add|sub|mul|floordiv|truediv|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
EXPRESSION = re.compile(
    r"(?>Symbol\('[su]\d{1,9}'(?:, \w{1,20}=(?:True|False))*\)|Integer\(-?\d{1,18}\)|(?:Add|Mul|Max|Min|FloorDiv|Mod)\(|\)|, |-?\d{1,18}|[su]\d{1,9})*+"
)
LONGEST_EXPRESSION = 1000
PLAIN = re.compile(r"[\w.]*")
VERSION = re.compile(r"[\w.+]{1,40}")
FORBIDDEN_OPERATORS = ("from_file", "save")
TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
FREE_TEXT = ("torch_version",)
LARGEST_GRAPH = 64 << 20
LARGEST = 8 << 30
MOST_TENSORS = 100_000


def load_program(path: Path) -> torch.nn.Module:
    """A feature extractor's program as a module. Raises FormatError when it is not one, or holds more than tensor operations."""
    return read_program(path, f"elbocli.export_extractor(network, images, {str(path)!r})").module()


def read_program(path: Path, export: str) -> torch.export.ExportedProgram:
    """The program in a file, with its inputs and outputs. export: a line of Python that makes one for batches of any size.

    Raises FormatError when it is not one, holds more than tensor operations, or takes batches of one size alone.
    """
    with refusing(f"{path}: not a torch.export program (.pt2)"), open_zip(path, MOST_TENSORS) as archive:
        records = _records(archive, path)
    with refusing(f"{path}: refused as a .pt2 program"):
        graph = OLD_GRAPH if OLD_GRAPH in records else GRAPH
        records[graph], writer = _checked_model(records[graph])
        for name, content in records.items():
            if name.endswith("_config.json"):
                _check_tensor_files(strict_json.parse(content))
            elif name.endswith(".pt") and content:
                records[name] = _checked_tensors(content, f"{path}: {name}", name in OLD_WEIGHTS)
    here = f"torch {torch.__version__} could not load this program, which torch {writer} exported"
    with refusing(f"{path}: {here}", f"; export it with the one that you have, by {export}"):
        program = torch.export.load(_rewritten(records))
    # torch.export makes a program for batches of one size unless told otherwise.
    shape = next((value.shape for value in user_inputs(program)), None)
    if shape and isinstance(shape[0], int):
        raise FormatError(
            f"{path}: takes batches of {shape[0]} images alone; export it for any size in Python, by {export}"
        )
    return program


def user_inputs(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """Tensors without memory, shaped like those that a program is called with."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.name in names]
    return [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]


def _records(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    members = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in members):
        raise FormatError(f"{path}: refused: it is compressed, and torch.export doesn't do that")
    if sum(info.file_size for info in members) > min(LARGEST, disk_bytes(path)):
        raise FormatError(f"{path}: refused: its parts are larger than itself, or than {LARGEST >> 30} GB")
    records, old = {}, any(info.filename == OLD_GRAPH for info in members)
    for info in members:
        name = info.filename if old else info.filename.partition("/")[2]
        if name not in OLD_RECORDS if old else not RECORDS.fullmatch(name):
            more = "which is more than a network of tensor operations"
            raise FormatError(f"{path}: refused: it holds {info.filename!r}, {more}")
        records[name] = read_member(archive, info, LARGEST)
    return records


def _check_tensor_files(config: dict[str, Any]) -> None:
    for entry in config["config"].values():
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise ValueError("a tensor in it is pickled, and loading it could run code")


def _checked_tensors(content: bytes, where: str, named: bool) -> bytes:
    """The same, written anew: what torch can't load as tensors alone it would load with code. named: by names."""
    tensors = load_tensors(io.BytesIO(content), where)
    if named and not (isinstance(tensors, dict) and all(isinstance(each, torch.Tensor) for each in tensors.values())):
        raise ValueError(f"{where}: holds more than tensors")
    torch.save(tensors, buffer := io.BytesIO())
    return buffer.getvalue()


def _checked_model(content: bytes) -> tuple[bytes, str]:
    """The graph with notes and guards (code) left out, all else checked; and the version of torch that wrote it."""
    model = strict_json.parse(content, LARGEST_GRAPH)
    model.pop("guards_code", None)
    model["graph_module"].pop("metadata", None)
    for node in model["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    _check(model, "")
    writer = str(model.get("torch_version"))
    return json.dumps(model).encode(), writer if VERSION.fullmatch(writer) else "of another version"


def _check(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "as_operator":
                raise ValueError("an argument that is a function")
            if not PLAIN.fullmatch(name):
                raise ValueError(f"{name[:60]!r} is not a name")
            _check(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_text(value: str, key: str) -> None:
    if key == "target":
        if not OPERATOR.fullmatch(value) or (value.split(".")[3:4] and value.split(".")[3] in FORBIDDEN_OPERATORS):
            raise ValueError(f"{value[:80]!r} is not a tensor operation")
    elif key == "expr_str":
        if len(value) > LONGEST_EXPRESSION or not EXPRESSION.fullmatch(value):
            raise ValueError(f"{value[:80]!r} is not a plain size expression")
    elif key in ("in_spec", "out_spec"):
        if value:
            _check_tree(strict_json.parse(value)[1])
    elif key == "as_string":
        if not re.fullmatch(r"[\w ,.>-]*", value):
            raise ValueError(f"argument {value[:60]!r} is not plain text")
    elif key not in FREE_TEXT and not PLAIN.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not a name")


def _check_tree(spec: dict[str, Any]) -> None:
    if spec["type"] not in TREE_TYPES:
        raise ValueError(f"arguments of type {spec['type']!r}")
    for child in spec["children_spec"]:
        _check_tree(child)


def _rewritten(records: dict[str, bytes]) -> io.BytesIO:
    if OLD_GRAPH in records:
        return make_zip(records)
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name in list(records):
        content = records.pop(name)  # a network's weights are not held three times
        if not name.startswith(".data/") and name not in ("byteorder", "version"):
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    buffer.seek(0)
    return buffer

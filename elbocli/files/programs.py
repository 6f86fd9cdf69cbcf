"""Programs of torch.export (.pt2). To load one is to run it, so elbo loads only those that the user names."""

from __future__ import annotations

from pathlib import Path

import torch

from elbocli.errors import FormatError
from elbocli.files.opening import open_file
from elbocli.files.reading import quiet, reading


def load_program(path: Path) -> torch.nn.Module:
    """Return a feature extractor's program as a module. Raises FormatError when it is not one."""
    return read_program(path, f"elbocli.export_extractor(network, images, {str(path)!r})").module()


def read_program(path: Path, export: str) -> torch.export.ExportedProgram:
    """Return the program in a file, with its inputs and outputs; loading it may run code.

    export: a line of Python that makes one for batches of any size. Raises FormatError when the file is no program, or
    takes batches of one size alone.
    """
    wrong = f"{path}: torch {torch.__version__} can't load it as a program of torch.export (.pt2)"
    with reading(wrong, f"; export it with this torch, by {export}"), open_file(path) as file, quiet():
        program = torch.export.load(file)
    # torch.export makes a program for batches of one size unless told otherwise.
    shape = next((value.shape for value in user_inputs(program)), None)
    if shape and isinstance(shape[0], int):
        raise FormatError(
            f"{path}: takes batches of {shape[0]} images alone; export it for any size in Python, by {export}"
        )
    return program


def user_inputs(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """Return tensors without memory, shaped like those that a program is called with."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.name in names]
    return [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]

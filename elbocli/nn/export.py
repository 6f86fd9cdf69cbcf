"""Write one's own networks as programs of torch.export: for `elbo import FILE.pt2`, and `elbo eval --extractor FILE.pt2`."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from elbocli.errors import UsageError
from elbocli.files.atomic import new_file
from elbocli.files.reading import reading
from elbocli.files.tensor_files import read_program
from elbocli.nn.networks import Network
from elbocli.nn.networks.own_network import open_program

MOST = 1 << 20
"""Images in a batch."""


def export_network(network: nn.Module, path: Path | str, *inputs: Tensor) -> None:
    """Write a network as FILE.pt2, for batches of any size, and check that elbo takes it; a file there is replaced.

    network: (z [B, C, H, W], level [B], labels [B]) → [B, C, H, W], or twice the channels; or (z, level) → out. It is on
    the CPU, and is put into eval mode. inputs: examples of these, of which elbo's own networks need none. Raises
    UsageError when it can't be exported so, FormatError when it is no network of images, DataError when the file can't be
    written.

        elbocli.export_network(network, "FILE.pt2", torch.zeros(2, 3, 32, 32), torch.zeros(2), torch.zeros(2).long())
        elbocli.export_network(elbocli.open_run("run", "cpu").network, "FILE.pt2")
    """
    if not inputs and isinstance(network, Network):
        inputs = tuple(each for each in network.config.example(2) if each is not None)
    # Decomposed, as autocast that is switched off is no tensor operation.
    _write_program(network, inputs, Path(path), decomposed=True)
    open_program(Path(path))


def export_extractor(network: nn.Module, images: Tensor, path: Path | str) -> None:
    """Write a network as FILE.pt2, for batches of any size, and check that elbo takes it; a file there is replaced.

    network: uint8 [B, C, H, W] → features [B, D], or (features, logits [B, K]); it is put into eval mode. images: uint8
    [N, C, H, W], examples of what it sees. Raises UsageError when it can't be exported so, DataError when the file can't be
    written.

        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        network = nn.Sequential(Scale(), nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        elbocli.export_extractor(network, images, "FILE.pt2")
    """
    _write_program(network, (images,), Path(path))
    read_program(Path(path))


def _write_program(network: nn.Module, inputs: tuple[Tensor, ...], path: Path, decomposed: bool = False) -> None:
    if path.suffix != ".pt2":
        raise UsageError(f"{path}: give it a name that ends in .pt2")
    # Two, as torch takes a batch of 1 for one that is always 1; and no more, as they are saved too.
    several = tuple(torch.cat([each[:1], each[-1:]]) for each in inputs)
    batch = torch.export.Dim("batch", min=1, max=MOST)
    wrong = f"{path}: torch.export can't make a program of this network for batches of any size"
    remedy = "; take sizes from the input's shape in its forward, and branch on no value of a tensor"
    with reading(wrong, remedy, UsageError), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's about torch
        program = torch.export.export(network.eval(), several, dynamic_shapes=tuple({0: batch} for _ in several))
        program = program.run_decompositions({}) if decomposed else program
    with new_file(path) as file:
        torch.export.save(program, file)

"""Write anyone's network as the program that `elbo eval --extractor FILE.pt2` takes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from elbocli.errors import UsageError
from elbocli.files.atomic import new_file
from elbocli.files.reading import one_line
from elbocli.files.tensor_files import load_program


def export_extractor(network: nn.Module, images: Tensor, path: Path | str) -> None:
    """Write a network as FILE.pt2, for batches of any size, and check that elbo takes it; a file there is replaced.

    network: uint8 [B, C, H, W] → features [B, D], or (features, logits [B, K]); it is put into eval mode. images: uint8
    [N, C, H, W], examples of what it sees. Raises UsageError when it can't be exported so, DataError when the file can't be written.

        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        network = nn.Sequential(Scale(), nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        elbocli.export_extractor(network, images, "FILE.pt2")
    """
    if Path(path).suffix != ".pt2":
        raise UsageError(f"{path}: give it a name that ends in .pt2")
    # Two, as torch takes a batch of 1 for one that is always 1; and no more, as they are saved too.
    several = torch.cat([images[:1], images[-1:]])
    try:
        program = torch.export.export(
            network.eval(), (several,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},)
        )
    except Exception as error:  # torch raises everything for what it can't export
        raise UsageError(
            f"{path}: torch.export can't make a program of this network for batches of any size: {one_line(error)}; "
            "take sizes from images.shape in its forward, and branch on no value of a tensor"
        ) from error
    with new_file(Path(path)) as file:
        torch.export.save(program, file)
    load_program(Path(path))

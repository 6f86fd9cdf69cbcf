"""Feature extractors for scores, declared by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.registry import Declaration, Registry
from elbocli.errors import DataError, FormatError, Parameter, UsageError
from elbocli.files.reading import file_sha256, reading

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT = "inception-v3-compat"
TINY = "elbo-tiny"  # the extractor that needs no weights
STRICT = "fp32"  # precision of published scores, and of files that state no precision
PUBLISHED_INCEPTION = "6726825d"
TINY_SHA256 = "3bcdfad010b982b1563a266ffada969d736ddb63c5a6af65690a9af7eeac0035"  # of elbo-tiny's weights
SPATIAL_CHANNELS = 7  # 17 × 17 × 7 = 2023 values for Inception, about as many as the 2048 other features


class Extractor(NamedTuple):
    """Network that computes features of images, for scores.

    module: uint8 images [B,C,H,W] → features [B,D], or (features, logits [B,K]).
    weights_sha256: digest of the weights; scores are comparable only if digests are equal.
    channels: number of image channels; 0: any number.
    spatial: submodule whose output [B,C,H,W] has the spatial features, if any.
    precision: fp32 or bf16; the caller sets TF32 and autocast.
    """

    name: str
    module: nn.Module
    weights_sha256: str
    channels: int = 0
    spatial: Any = None
    precision: str = STRICT

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and logits (or None) of images, uint8 [B,C,H,W]. Raises DataError, FormatError."""
        if self.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        with reading(f"extractor {self.name}: can't take images {tuple(images.shape[1:])}", kind=DataError):
            out = self.module(images)
        features, logits = (*out, None)[:2] if isinstance(out, tuple | list) else (out, None)
        if features.dim() != 2 or len(features) != len(images):
            raise FormatError(
                f"extractor {self.name}: returned {tuple(features.shape)}; return (B, D) or (features, logits (B, K)) instead"
            )
        return features.float(), None if logits is None else logits.float()

    def with_spatial(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return features, logits (or None) and spatial features [B,S] of images, uint8 [B,C,H,W].

        Raises DataError, FormatError.
        """
        kept: list[Tensor] = []
        with self.spatial.register_forward_hook(lambda module, given, out: kept.append(out)):
            features, logits = self(images)
        spatial = kept[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()  # ADM's order, NHWC
        return features, logits, spatial


@dataclass(frozen=True, repr=False)
class NamedExtractor(Declaration[["Path | None"], Extractor]):
    """Declared extractor: a function (path of weights or None) → Extractor."""


EXTRACTORS = Registry("extractor", NamedExtractor)
extractor = EXTRACTORS.declare


@extractor(
    DEFAULT,
    formula="Inception v3 as in the FID paper, 2048 features",
    source="Heusel et al. 2017; torch-fidelity",
    known_as=["inception", "inception-v3"],
)
def inception(weights: Path | None) -> Extractor:
    """Make the Inception extractor, by default with torch-fidelity's weights, downloaded once."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from elbocli.files.tensor_files import load_tensors

    weights = weights or _published()
    load_tensors(weights)  # raises FormatError for a file with code
    with reading(f"{weights}: not weights of this {DEFAULT} network"):
        module: Any = FeatureExtractorInceptionV3(
            DEFAULT, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
    digest = file_sha256(weights)
    # Batch norm is folded and memory is channels-last, so features differ from torch-fidelity's by rounding.
    block: Any
    for block in module.modules():
        if isinstance(getattr(block, "bn", None), torch.nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv.double(), block.bn.double()).float()
            block.bn = torch.nn.Identity()
    module = module.requires_grad_(False).to(memory_format=torch.channels_last)
    spatial = module.get_submodule("Mixed_6d.branch1x1")  # TensorFlow's `mixed_6/conv`, after batch norm and ReLU
    return Extractor(DEFAULT, module, digest, channels=3, spatial=spatial)


@extractor(
    "dinov2-vitl14",
    formula="DINOv2's ViT-L/14, 1024 features, resized by antialiased bicubic: FD-DINOv2",
    source="Oquab et al. 2023; Karras et al. 2024 (EDM2)",
)
def dinov2(weights: Path | None) -> Extractor:
    """Make the DINOv2 extractor from a file of weights. Raises UsageError without one."""
    from elbocli.scoring.extractors.vit import load_dinov2

    return Extractor("dinov2-vitl14", *load_dinov2(weights), channels=3)


def _published() -> Path:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    remedy = (
        "; give them with ",
        Parameter("extractor_weights"),
        f" FILE ({path.name}, from torch-fidelity's releases)",
    )
    with reading(f"{path}: the Inception weights could not be fetched", remedy, DataError):
        torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, progress=False, check_hash=True, weights_only=True)
    return path


@extractor(
    TINY,
    formula="small random convolutions, 64 features",
    source="fixed seed, no download: for tests and smoke runs, not for publication",
)
def tiny(weights: Path | None) -> Extractor:
    """Make the tiny extractor. Raises UsageError unless `weights` is None."""
    if weights is not None:
        raise UsageError("elbo-tiny has no weights to load; leave ", Parameter("extractor_weights"), " out")
    from elbocli.scoring.extractors.vit import Tiny

    module = Tiny()
    return Extractor(TINY, module, TINY_SHA256, channels=3, spatial=module.convs[-1])


def make_extractor(name: str, weights: Path | None, device: Any, precision: str = STRICT) -> Extractor:
    """Make an extractor on a device. Raises ElboError.

    name: a declared name, or the path of a .pt2 file. precision: fp32 or bf16.
    weights: file of weights; None: weights that the extractor includes or downloads.
    """
    if name.endswith(".pt2"):
        if weights is not None:
            raise UsageError("a .pt2 program brings its own weights; leave ", Parameter("extractor_weights"), " out")
        from elbocli.files.tensor_files import read_program

        path = Path(name)
        made = Extractor(path.name, read_program(path).module(), file_sha256(path))
    else:
        made = EXTRACTORS.find(name)(weights)
    made.module.to(device)
    return made._replace(precision=precision)


def export_extractor(network: nn.Module, images: Tensor, path: Path | str) -> None:
    """Export an extractor to FILE.pt2 for batches of any size, and check that elbo can read it. An existing file is replaced.

    network: uint8 [B, C, H, W] → features [B, D], or (features, logits [B, K]); it is set to eval mode.
    images: example images, uint8 [N, C, H, W]. Scale (below): your module that converts uint8 to float.
    Raises UsageError if torch can't export the network, DataError if writing fails.

        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        network = nn.Sequential(Scale(), nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        elbocli.export_extractor(network, images, "FILE.pt2")
    """
    import warnings

    import torch

    from elbocli.files.atomic import new_file
    from elbocli.files.tensor_files import read_program

    path = Path(path)
    if path.suffix != ".pt2":
        raise UsageError(f"{path}: the file name must end in .pt2")
    # Two examples: torch would treat a batch of 1 as constant, and more would make the file larger, since they are saved.
    several = (torch.cat([images[:1], images[-1:]]),)
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    wrong = f"{path}: torch.export can't make a program of this network for batches of any size"
    remedy = "; in its forward, read sizes from the input's shape, and don't branch on values of tensors"
    with reading(wrong, remedy, UsageError), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
        program = torch.export.export(network.eval(), several, dynamic_shapes=({0: batch},))
    with new_file(path) as file:
        torch.export.save(program, file)
    read_program(path)

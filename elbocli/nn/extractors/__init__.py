"""Feature extractors for scoring, declared once by name. torch is imported only when one is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.registry import Registry
from elbocli.errors import DataError, FormatError, UsageError

if TYPE_CHECKING:
    import torch

EXTRACTORS = Registry("extractor")
extractor = EXTRACTORS.declare
"""Declares (path of weights or None) → an Extractor."""
DEFAULT = "inception-v3-compat"
STRICT = "fp32"
"""The precision of features that published numbers are of, and of files that don't say one."""
PRECISIONS = (STRICT, "bf16")
PUBLISHED_INCEPTION = "6726825d"
SPATIAL_CHANNELS = 7
"""Channels that are spatial features: 17 × 17 × 7 = 2023 numbers of Inception, about as many as its other features."""


class Extractor(NamedTuple):
    """module: uint8 [B,C,H,W] → features [B,D], or (features, logits [B,K]).

    channels: what it takes (0: any). weights_sha256: of the weights, so that numbers can be compared. spatial: the part of
    the module whose output [B,C,H,W] has the spatial features; None where it has none. precision: of PRECISIONS, in which
    features are to be extracted; the caller sets torch's switches.
    """

    name: str
    module: torch.nn.Module
    weights_sha256: str
    channels: int = 0
    spatial: torch.nn.Module | None = None
    precision: str = STRICT

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features and logits (None when it has none) of uint8 [B,C,H,W]. Raises DataError when it can't take them."""
        from elbocli.files.reading import reading

        if self.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        with reading(f"extractor {self.name}: can't take images {tuple(images.shape[1:])}", kind=DataError):
            out = self.module(images)
        features, logits = (*out, None)[:2] if isinstance(out, (tuple, list)) else (out, None)
        if features.dim() != 2 or len(features) != len(images) or (logits is not None and logits.dim() != 2):
            raise FormatError(
                f"extractor {self.name}: returned {tuple(features.shape)}, expected features (B, D), or features and logits (B, K)"
            )
        return features.float(), None if logits is None else logits.float()

    def with_spatial(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The same, and spatial features [B,S]: the first 7 channels of that part's output, row by row, channels last, as
        ADM has them. Needs such a part. Raises DataError.
        """
        kept: list[torch.Tensor] = []
        assert self.spatial is not None
        with self.spatial.register_forward_hook(lambda module, given, out: kept.append(out)):
            features, logits = self(images)
        spatial = kept[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()
        return features, logits, spatial


def is_published(name: Any, weights_sha256: Any, precision: str | None = None) -> bool:
    """Tell whether it is the published Inception network, whose numbers alone may carry the names FID and IS.

    precision: None where it isn't known to be another than STRICT.
    """
    return name == DEFAULT and str(weights_sha256).startswith(PUBLISHED_INCEPTION) and precision in (None, STRICT)


@extractor(
    DEFAULT,
    formula="Inception v3 as in the FID paper, 2048 features",
    source="Heusel et al. 2017; torch-fidelity",
    known_as=["inception", "inception-v3"],
)
def inception(weights: Path | None) -> Extractor:
    """Weights from a file, else torch-fidelity's published ones in the user's cache (fetched once).

    Batch norm is folded, and channels come last in memory: features differ from torch-fidelity's by rounding. Spatial
    features are those of TensorFlow's `mixed_6/conv`, the 1 × 1 branch of Mixed_6d after batch norm and ReLU.
    """
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = weights or _published()
    module, digest = _loaded(FeatureExtractorInceptionV3, DEFAULT, ["2048", "logits_unbiased"], path)
    module = _fold_batch_norm(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spatial = module.get_submodule("Mixed_6d.branch1x1")
    return Extractor(DEFAULT, module, digest, channels=3, spatial=spatial)


@extractor(
    "vgg16",
    formula="VGG16, 4096 features",
    source="Simonyan & Zisserman 2014; torch-fidelity's default for precision and recall",
)
def vgg16(weights: Path | None) -> Extractor:
    """Weights from a file of torchvision's."""
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    path = _given(weights, "vgg16", "torchvision's vgg16 for ImageNet")
    module, digest = _loaded(FeatureExtractorVGG16, "vgg16", ["fc2_relu"], path)
    return Extractor("vgg16", module, digest, channels=3)


@extractor(
    "dinov2-vitl14",
    formula="DINOv2's ViT-L/14, 1024 features, resized by antialiased bicubic: FD-DINOv2",
    source="Oquab et al. 2023; Karras et al. 2024 (EDM2)",
)
def dinov2(weights: Path | None) -> Extractor:
    """Weights from a file of DINOv2's hub, of timm's or of transformers'. EDM2's preprocessing, which torch-fidelity's isn't."""
    from elbocli.nn.extractors.vit import DINOV2_HUB, DINOV2_TRANSFORMERS, VitShape, vit_extractor

    path = _given(weights, "dinov2-vitl14", "dinov2_vitl14_pretrain.pth of DINOv2's hub")
    shape = VitShape(width=1024, depth=24, heads=16, patch=14, trained=37)
    return vit_extractor("dinov2-vitl14", shape, path, (DINOV2_HUB, DINOV2_TRANSFORMERS))


@extractor(
    "clip-vitb32",
    formula="CLIP's ViT-B/32, 512 features of length 1, resized by antialiased bicubic",
    source="Radford et al. 2021; for CMMD, whose authors have ViT-L/14 at 336 pixels",
)
def clip(weights: Path | None) -> Extractor:
    """Weights from a file of OpenAI's names (open_clip) or of transformers'. CMMD's preprocessing: no crop."""
    from elbocli.nn.extractors.vit import CLIP_OPENAI, CLIP_TRANSFORMERS, VitShape, vit_extractor

    path = _given(weights, "clip-vitb32", "pytorch_model.bin of openai/clip-vit-base-patch32")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    shape = VitShape(768, 12, 12, patch=32, trained=7, mean=mean, std=std, embedding=512)
    return vit_extractor("clip-vitb32", shape, path, (CLIP_TRANSFORMERS, CLIP_OPENAI))


def _given(weights: Path | None, name: str, file: str) -> Path:
    """The file of weights. Raises UsageError where none is given."""
    if weights is None:
        raise UsageError(f"{name} needs --extractor-weights FILE, {file}")
    return weights


def _loaded(make: Any, name: str, layers: list[str], path: Path) -> tuple[torch.nn.Module, str]:
    """One of torch-fidelity's networks and the sha256 of its weights. Raises FormatError; runs no code from the file."""
    from elbocli.files.reading import file_sha256, reading
    from elbocli.files.tensor_files import load_tensors

    load_tensors(path)
    with reading(f"{path}: not weights of this {name} network"):
        module = make(name, layers, feature_extractor_weights_path=str(path))
    return module, file_sha256(path)


def _fold_batch_norm(module: torch.nn.Module) -> torch.nn.Module:
    """Fold each `bn` into the `conv` before it, in place: the same numbers up to rounding, in fewer passes over memory."""
    from torch.nn import BatchNorm2d, Identity
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    block: Any
    for block in module.modules():
        if isinstance(getattr(block, "bn", None), BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv.double(), block.bn.double()).float()
            block.bn = Identity()
    return module.requires_grad_(False)


def _published() -> Path:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    from elbocli.files.reading import reading

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    remedy = (
        f"; give them with --extractor-weights FILE ({path.name}, from torch-fidelity's releases), or use --extractor "
        "elbo-tiny for a smoke run"
    )
    with reading("the Inception weights could not be fetched", remedy, DataError):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=PUBLISHED_INCEPTION, progress=False)
    return path


@extractor(
    "elbo-tiny",
    formula="small random convolutions, 64 features",
    source="fixed seed, no download: for tests and smoke runs, not for publication",
)
def tiny(weights: Path | None) -> Extractor:
    """The same network on every machine."""
    if weights is not None:
        raise UsageError("elbo-tiny has no weights to load; leave --extractor-weights out")
    import hashlib

    from elbocli.nn.extractors.elbo_tiny import Tiny

    module = Tiny()
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in module.state_dict().values())).hexdigest()
    return Extractor("elbo-tiny", module, digest, channels=3, spatial=module.convs[-1])


def make_extractor(name: str, weights: Path | None, device: Any, precision: str = STRICT) -> Extractor:
    """A declared extractor, or the program in a .pt2 file, on a device. precision: of PRECISIONS. Raises ElboError."""
    if name.endswith(".pt2"):
        if weights is not None:
            raise UsageError("a .pt2 program brings its own weights; leave --extractor-weights out")
        from elbocli.files.reading import file_sha256
        from elbocli.files.tensor_files import read_program

        path = Path(name)
        made = Extractor(path.name, read_program(path).module(), file_sha256(path))
    else:
        made = EXTRACTORS.find(name)(weights)
    made.module.to(device)
    return made._replace(precision=precision)

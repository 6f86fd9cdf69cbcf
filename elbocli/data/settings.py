"""Settings of `elbo prep`. This module imports neither torch nor Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from elbocli.files.latents import CONVENTIONS
from elbocli.files.settings import Settings, device_setting, setting


@dataclass(frozen=True)
class DecodeOptions:
    """Settings for decoding an image to a square.

    size: side of the square in pixels; 0: not chosen yet.
    channels: 1 or 3; 0: as in the file.
    crop: key of CROPS.
    grey_expected: report colour images as 'colour made grey'.
    """

    size: int = 0
    channels: int = 3
    crop: str = "center"
    grey_expected: bool = False


@dataclass(frozen=True, kw_only=True)
class PrepSettings(DecodeOptions, Settings):
    """Settings of `elbo prep`. Raises UsageError for an unknown latent convention.

    size, channels: 0: elbo chooses.
    overwrite: whether to replace an existing dataset. command: elbo's command line, for the dataset.
    """

    size: int = setting(
        0,
        "Side of the square images in pixels.",
        shown="the images' own where all are alike and at most 64, otherwise 64",
        ge=1,
        le=8192,
    )
    crop: Literal["center", "edm", "resize", "none"] = setting(
        "center",
        "center: ADM's centre crop (BOX halving, bicubic, cut); edm: the middle square, then Lanczos; resize: Lanczos, "
        "proportions lost; none: images must already have the size.",
    )
    channels: Literal[0, 1, 3] = setting(0, "1 for grey, 3 for RGB.", shown="1 where all images are grey, otherwise 3")
    labels: Path | None = setting(
        None,
        "Classes of the images: lines of NAME CLASS, CSV, or a class a line in the order of the names. "
        "Folders are then not classes.",
        metavar="FILE",
    )
    class_names: Path | None = setting(
        None,
        "The classes and their order: KEY or KEY<tab>NAME a line, or ILSVRC's meta.mat. Images of other classes are left out.",
        metavar="FILE",
    )
    subset: tuple[Literal["train", "val"], Annotated[float, Meta(gt=0, le=1)]] | None = setting(
        None,
        "val: a share of each class (such as 0.1), always the same; train: all the others.",
        metavar="train|val SHARE",
    )
    limit: int | None = setting(None, "Take only the first N images.", ge=1)
    latents: Path | None = setting(
        None,
        "Store latents of a diffusers AutoencoderKL folder: mean and standard deviation of each.",
        metavar="DIR",
    )
    latent_convention: str = setting(
        "diffusers",
        "Scaling of latents z for the network. " + "; ".join(f"{c.name}: {c.formula}" for c in CONVENTIONS.values()) + ".",
        names="elbocli.files.latents.CONVENTIONS",
    )
    mirror: bool = setting(False, "With --latents: also pack the latents of each mirrored image.")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = setting("fp32", "Precision of the autoencoder; fp32 is strict.")
    device: str = device_setting()
    on_error: Literal["stop", "skip"] = setting(
        "stop", "Stop at a file that is not a usable image, or skip it and list it in OUT.skipped.jsonl."
    )
    overwrite: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        CONVENTIONS.find(self.latent_convention)

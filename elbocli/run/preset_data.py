"""The data that a preset is made for, where a plan needs no more of a dataset than its shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elbocli.errors import DataError
from elbocli.files.checkpoint import RunData
from elbocli.files.dataset import IMAGES, LATENTS, Dataset, find_dataset
from elbocli.nn.presets import load_preset


@dataclass(frozen=True)
class PresetData:
    """Stands where a Dataset would. path: which preset says so. image_size: side in pixels, or of the latents."""

    path: str
    kind: str
    image_size: int
    channels: int
    num_classes: int
    count: int

    def __len__(self) -> int:
        return self.count

    def identity(self) -> RunData:
        """Return what a Dataset's identity would say, as far as it is known."""
        return RunData(
            path=self.path,
            count=self.count,
            image_size=self.image_size,
            channels=self.channels,
            num_classes=self.num_classes,
        )

    def fits(self, dataset: Dataset) -> bool:
        """Tell whether that dataset holds such images."""
        mine, its = ((data.kind == LATENTS, data.image_size, data.channels) for data in (self, dataset))
        return mine == its

    def __str__(self) -> str:
        size = f"{self.image_size} x {self.image_size} {'latents' if self.kind == LATENTS else 'pixels'}"
        return f"{self.count} images of {size}, {self.channels} channels, {self.num_classes} classes"


def preset_data(preset: str) -> PresetData | None:
    """Return the data that a preset, by name or path, is made for; None when it doesn't say. Raises UsageError, FormatError."""
    data = load_preset(preset).data
    if data is None:
        return None
    kind = LATENTS if data.latents else IMAGES
    return PresetData(f"preset {preset}", kind, data.image_size, data.channels, data.classes, data.images)


def planned_for(preset: str | None, folder: Path) -> tuple[Dataset | PresetData, str]:
    """(the data to plan for when none are named, why these): the only dataset in the folder, as in a run, if it fits.

    Raises DataError when there is neither a dataset nor a preset that says what it is made for.
    """
    made_for = None if preset is None else preset_data(preset)
    try:
        found = Dataset(find_dataset(folder), latents=True)
    except DataError as error:
        if made_for is None:
            raise
        return made_for, f"{str(error).split(';')[0]}; planned for {made_for}, which {made_for.path} is made for"
    if made_for is None or made_for.fits(found):
        return found, f"dataset {found.path}, the only one here"
    return made_for, (
        f"planned for {made_for}, which {made_for.path} is made for, and not for {found.path}, the only dataset "
        f"here, of {found.image_size} x {found.image_size} and {found.channels} channels; name it to plan for it"
    )

"""Settings of `elbo import`. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elbocli.files.settings import Level, Settings, setting

CONTENTS = "Contents of SOURCE"


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Settings):
    """Options of `elbo import` about a checkpoint; '' or None: option not given.

    weights: ema (the average), model (the last weights), or the key of other weights in the file.
    prediction, weighting, schedule: SPECs. noise_input: SPEC of the network's input for the noise level.
    attention: heads=N or width=N; with ',new': q, k and v in ADM's new order.
    size, channels, num_classes: side and channels of the images or latents, number of classes.
    prefix: only names with this prefix are imported, without the prefix. rename: rules OLD=NEW for the beginnings of names.
    network: FAMILY:KEY=VALUE,… of a plug-in's network. autoencoder: folder, for latents.
    """

    weights: str = setting(
        "ema",
        "The average, the last weights, or the weights under a key of SOURCE.",
        group=CONTENTS,
        metavar="ema|model|KEY",
    )
    prediction: str = setting(
        "",
        "Network's output; see 'elbo list predictions'.",
        group="Facts that SOURCE lacks",
        names="elbocli.core.prediction.PREDICTIONS",
    )
    noise_input: str = setting(
        "",
        "The network's input for the noise level: logsnr:factor=F, sigma, flow, t:linear, …",
        names="elbocli.core.schedule.LEVEL_CODES",
    )
    weighting: str = setting("", "Weighting that it was trained with.", names="elbocli.core.weighting_curves.WEIGHTINGS")
    schedule: str = setting("", "Schedule that it was trained with.", names="elbocli.core.schedule_curves.SCHEDULES")
    attention: str = setting(
        "",
        "For guided-diffusion: number of heads, or channels per head; new: its new order.",
        metavar="heads=N|width=N[,new]",
    )
    size: int | None = setting(None, "Side in pixels, or of latents.", ge=1, le=4096)
    channels: int | None = setting(None, "Channels of images or latents.", ge=1, le=1024)
    num_classes: int | None = setting(None, "Number of classes; 0 is none.", le=10**6)
    logsnr_min: Level | None = setting(None, "Noisiest level that it was trained on.")
    logsnr_max: Level | None = setting(None, "Cleanest level that it was trained on.")
    prefix: str = setting("", "Take only names that begin with TEXT, and remove TEXT.", group=CONTENTS, metavar="TEXT")
    rename: tuple[str, ...] = setting(
        (), "Replace OLD, which may be empty, by NEW at the beginning of names; may be repeated.", metavar="OLD=NEW"
    )
    network: str = setting("", "Your own network, declared in a plug-in.", metavar="FAMILY[:KEY=VALUE,...]")
    autoencoder: Path | None = setting(None, "For latents: the AutoencoderKL of diffusers that made them.", metavar="DIR")

    def of_training(self) -> dict[str, str | float]:
        """Return the given settings that are fields of TrainSettings."""
        keys = ("prediction", "weighting", "schedule", "logsnr_min", "logsnr_max")
        return {key: value for key in keys if (value := getattr(self, key)) not in ("", None)}

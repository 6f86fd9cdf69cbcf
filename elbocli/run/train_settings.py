"""The settings of `elbo train`, each declared once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from elbocli.core.registry import LEARNED
from elbocli.errors import UsageError
from elbocli.run.setting_type import AUTO, LARGEST_DURATION_S, LARGEST_SEED, PRECISIONS, Setting, count, setting

ADAPTIVE = "adaptive"
PARALLELS = ("ddp", "fsdp")
"""Every process holds the whole network, or its share of each weight."""

RUN = "Run"
OBJECTIVE = "Objective, what is learned"
LEVELS = "Noise levels drawn, which change the variance of the loss alone"
DATA = "Data and network"
OPTIMIZER = "Optimizer"
SPEED = "Speed and memory"
KEPT = "What is kept"
VALIDATION = "Validation"


@dataclass(frozen=True)
class TrainSettings:
    """Settings that decide how a run is trained; names are those of the options.

    Those that aren't stored refine others, and are None once settings are resolved. time_limit: seconds of one start
    of the run. Raises UsageError for a value out of bounds, and for values that don't go together.
    """

    preset: str = setting(
        "",
        RUN,
        "Network and settings; or a FILE.yaml.",
        shown="by size and count",
        names="elbocli.nn.presets.NAMES",
        metavar="NAME",
        in_presets=False,
    )
    seed: int = count(0, RUN, "All draws are functions of it.", shown="0", low=0, high=LARGEST_SEED)
    time_limit: float = setting(
        0.0,
        RUN,
        "Save and end after 3h50m, 90s, 1:30:00.",
        more="The same command goes on. Leave time to start and to save.",
        low=0,
        high=LARGEST_DURATION_S,
        metavar="DURATION",
        free=True,
    )
    on_nonfinite: str = setting("stop", RUN, "Exit 4, or leave the update out.", choices=("stop", "skip"), free=True)
    max_skips: int = count(10, RUN, "Skips in a row before it stops.", free=True)

    weighting: str = setting(
        "sigmoid",
        OBJECTIVE,
        "w(logsnr): NAME or NAME:key=value,…; see 'elbo weights list'.",
        more="Or a loss as papers write it, TARGET-mse[:FACTOR]@SCHEDULE, FACTOR one of 'elbo weights list factors' or a "
        "weighting: v-mse@cosine, x-mse:min-snr:5@linear-beta. Or schedule:SCHEDULE, its density; or the path of a "
        "diffusers scheduler_config.json. Or uncertainty, learned while training as EDM2's: the schedule's density over the "
        "error at each noise level, which uncertainty:monotone keeps from rising.",
        names="elbocli.core.weighting_curves.WEIGHTINGS",
        words=(LEARNED,),
    )
    bias: float | None = setting(None, OBJECTIVE, "The weighting's parameter bias: 2 is :bias=2.", stored=False)
    shift: float | str | None = setting(
        None,
        OBJECTIVE,
        "Shift w in logsnr; auto is 2 log(64/d) at d pixels.",
        metavar="NUMBER|auto",
        stored=False,
        in_presets=True,
    )
    monotone: bool | None = setting(None, OBJECTIVE, "Hold the weighting constant left of its peak.", stored=False)
    prediction: str = setting(
        "v",
        OBJECTIVE,
        "Network's output; see 'elbo weights list predictions'.",
        shown="",
        names="elbocli.core.prediction.PREDICTIONS",
    )
    logsnr_min: float = setting(-15.0, OBJECTIVE, "Noisiest level.", shown="", low=-50, high=50)
    logsnr_max: float = setting(15.0, OBJECTIVE, "Cleanest level.", shown="", low=-50, high=50)

    schedule: str = setting(
        "cosine",
        LEVELS,
        "NAME or NAME:key=value,…; FILE of 'elbo adapt'; or adaptive, fitted while training.",
        more="FILE may also be a diffusers scheduler_config.json. Each also takes shift=; size= is that of the images "
        "unless given.",
        shown="",
        names="elbocli.core.schedule_curves.SCHEDULES",
        words=(ADAPTIVE,),
    )
    t_sampling: str = setting(
        "low-discrepancy", LEVELS, "How t is drawn in a batch.", choices=("low-discrepancy", "independent")
    )
    floor: float = setting(0.01, LEVELS, "Least share of uniform density.", low=0, high=1, above=True)

    flip: bool = setting(False, DATA, "Mirror half of the images; refused for latents.")
    conditional: bool | None = setting(
        None, DATA, "Condition on classes.", shown="if several", flags="--conditional/--unconditional", stored=False
    )
    label_dropout: float = setting(
        0.1, DATA, "Share of images trained without class, for guidance.", shown="", low=0, high=1
    )
    dropout: float | None = setting(None, DATA, "Dropout in the network's blocks.", low=0, high=0.99, stored=False)

    steps: int = count(100_000, OPTIMIZER, "Updates in all.", shown="", free=True)
    batch: int = count(256, OPTIMIZER, "Images per update.", shown="", high=10**6)
    lr: float = setting(1e-4, OPTIMIZER, "Learning rate of AdamW.", shown="", low=0, high=1e3, above=True)
    warmup: int = count(1000, OPTIMIZER, "Updates over which lr rises from zero.", shown="", low=0)
    lr_decay: str = setting(
        "constant",
        OPTIMIZER,
        "Fall of lr: constant, cosine, linear, rsqrt:ref=STEPS.",
        more="After n updates, lr and its warm-up are multiplied by final + (1 - final)(1 + cos(pi n/steps))/2 (cosine), by "
        "1 - (1 - final) n/steps (linear), or by 1/sqrt(max(n/ref, 1)) (rsqrt, as EDM2 does it; ref is 70000 unless given). "
        "cosine:final=.1 ends at a tenth of lr; final is 0 unless given. A run that goes on with other --steps follows the "
        "curve of the new number from there.",
        shown="",
        names="elbocli.core.training.LR_DECAYS",
    )
    weight_decay: float = setting(0.0, OPTIMIZER, "Weight decay of AdamW.", shown="0", low=0, high=1e3)
    beta2: float = setting(0.999, OPTIMIZER, "beta2 of AdamW; beta1 is 0.9.", low=0, high=0.9999999)
    adam_eps: float = setting(1e-8, OPTIMIZER, "epsilon of AdamW.", low=0, high=1, above=True)
    clip: float = setting(1.0, OPTIMIZER, "Clip the gradient norm to this; 0 is no limit.", shown="", low=0)

    device: str = setting(
        AUTO,
        SPEED,
        "cpu, cuda, cuda:1.",
        more="Where none is named, $ELBO_DEVICE comes first.",
        shown="cuda, else cpu",
        metavar="NAME",
        free=True,
        in_presets=False,
    )
    precision: str = setting(
        AUTO,
        SPEED,
        "Number format of the network.",
        more="fp32 is strict; tf32 multiplies with 10-bit mantissas on CUDA, and is fp32 on a CPU; bf16 and fp16 are by "
        "autocast, with fp32 weights. auto keeps the run's own if it continues; else it is fp32 on a CPU, and on "
        "CUDA bf16 for presets that are meant for a GPU, if the card supports it, else tf32. A run may go from fp32 to tf32 and back.",
        choices=(AUTO, *PRECISIONS),
    )
    compile: bool | None = setting(
        None,
        SPEED,
        "torch.compile the network.",
        more="The start takes a minute or more longer. If compilation fails, training warns and continues without it. On "
        "CUDA, the kernels of networks of up to 100 million parameters are also replayed as CUDA graphs, where one process "
        "sees a whole batch at once, without --activation-checkpointing.",
        shown="on CUDA",
        free=True,
    )
    parallel: str = setting("ddp", SPEED, "Each process holds all weights, or a share.", choices=PARALLELS, free=True)
    micro_batch: int = count(
        0,
        SPEED,
        "Images at once in a process; 0 is automatic.",
        more="The gradients of a batch are added up. 0 takes the process's whole share of the batch on a CPU, and as many "
        "as fit on CUDA. elbo takes fewer if all parts then have one size and are fewer than twice as many.",
        low=0,
        high=10**6,
        free=True,
    )
    activation_checkpointing: bool = setting(False, SPEED, "Recompute activations: less memory, but slower.", free=True)

    ema: tuple[str, ...] = setting(
        ("0.9999",),
        KEPT,
        "Average of the weights: its decay per update, or NAME:key=value,…; may be repeated.",
        more="Previews, validation, sample and bound use the first.",
        shown="",
        names="elbocli.core.training.AVERAGES",
    )
    snapshot_every: int = count(
        0,
        KEPT,
        "Updates per snapshot for 'elbo ema'; 0 is none.",
        more="Snapshots are of the power averages. Where --ema names none, those of std 0.05 and 0.1 are added. The default "
        "is steps/20 if --ema names one, else 0.",
        shown="",
        low=0,
        free=True,
    )
    save_every: int = count(1000, KEPT, "Updates per checkpoint.", shown="", free=True)
    keep: int = count(2, KEPT, "Checkpoints to keep.", free=True)
    milestone_every: int = count(0, KEPT, "Updates per permanent checkpoint; 0 is none.", low=0, free=True)
    log_every: int = count(100, KEPT, "Updates per line of the logs.", shown="")
    preview_every: int = count(5000, KEPT, "Updates per preview picture; 0 is none.", shown="", low=0, free=True)

    val: str = setting("", VALIDATION, "Validate on this dataset, packed like DATA.h5.", metavar="PATH", free=True)
    val_split: int = count(0, VALIDATION, "Number of images to hold out; 0 is none.", low=0)
    val_every: int = count(0, VALIDATION, "Images between validations; 0 is 2 % of the work.", low=0, free=True)
    val_images: int = count(0, VALIDATION, "Most images per validation; 0 is all.", low=0, free=True)

    def __post_init__(self) -> None:
        for name, declared in SETTINGS.items():
            declared.check(name, getattr(self, name))
        if self.val and self.val_split:
            raise UsageError(
                "--val and --val-split: choose one; validation is on another dataset, or on a part of this one"
            )
        if self.micro_batch > self.batch:
            raise UsageError(
                f"micro-batch is {self.micro_batch}; it must be at least 0 (automatic) and at most the batch, {self.batch}"
            )

    def stored(self) -> dict[str, Any]:
        """Settings by name as config.yaml says them."""
        values = {name: getattr(self, name) for name, declared in SETTINGS.items() if declared.stored}
        return {**values, "ema": list(self.ema)}


SETTINGS: dict[str, Setting] = {each.name: each.metadata["setting"] for each in fields(TrainSettings)}
PRESET_SETTINGS = [
    key for key, each in SETTINGS.items() if (each.stored if each.in_presets is None else each.in_presets)
]
"""Those that a preset may say."""
KIND: dict[str, str] = {each.name: str(each.type).removesuffix(" | None") for each in fields(TrainSettings)}
"""The kind of each setting, as its annotation says it."""

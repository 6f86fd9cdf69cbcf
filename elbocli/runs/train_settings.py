"""The settings of `elbo train`, each declared once: type, bounds, help, group."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from elbocli.errors import UsageError
from elbocli.files.records import plain
from elbocli.files.settings import LARGEST, LARGEST_SEED, Number, Settings, setting
from elbocli.runtime import AUTO

ADAPTIVE = "adaptive"

RUN = "Run"
SPEED = "Speed and memory"
KEPT = "What is kept"
VALIDATION = "Validation and scores"

IN_UNITS = re.compile(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m(?:in)?)?(?:([0-9.]+)s)?")
IN_COLONS = re.compile(r"(?:(?:([0-9]+)-)?([0-9]+):)?([0-9]+):([0-9][0-9])")


def seconds(value: Any) -> Any:
    """Return a duration in seconds.

    value: a number of seconds, or text such as 3h50m, 90s, 1.5h, 2d, MM:SS, HH:MM:SS or D-HH:MM:SS; 0 is no limit.
    Raises ValueError for other text, even '90', which some job schedulers read as minutes.
    """
    if not isinstance(value, str) or value == "0":
        return value
    text = value.lower().replace(" ", "")
    match = IN_COLONS.fullmatch(text) or IN_UNITS.fullmatch(text)
    if not match or not text:
        raise ValueError("expected a duration like 3h50m, 90s, 1.5h or 1:30:00")
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1)))


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """Training settings of a run. Raises UsageError for settings that contradict each other.

    Settings with stored=False, such as `bias`, aren't saved: `resolve` merges each into another setting.
    stated: names of the settings that an imported checkpoint tells, and that alone are in config.yaml; None: all.
    """

    layered: ClassVar[bool] = True
    stated: frozenset[str] | None = None

    preset: str = setting(
        "",
        "NAME, or a FILE.yaml.",
        group=RUN,
        shown="by size",
        names="elbocli.runs.presets.NAMES",
        metavar="NAME",
        preset=False,
    )
    seed: int = setting(0, "Seed of all random draws.", shown="0", le=LARGEST_SEED)
    time_limit: float = setting(
        0.0,
        "Save and end after 3h50m, 90s, 1:30:00.",
        more="The same command resumes the run. Leave time to start and to save.",
        ge=0,
        zero="none",
        le=1000 * 86400,
        metavar="DURATION",
        free=True,
        parse="elbocli.runs.train_settings.seconds",
    )

    weighting: str = setting(
        "sigmoid",
        "w(logsnr); see 'elbo list'.",
        group="Objective and output of the network",
        more="Or a loss as papers write it, TARGET-mse[:FACTOR]@SCHEDULE, FACTOR one of 'elbo list factors' or a "
        "weighting: v-mse@cosine, x-mse:min-snr:5@linear-beta. Or the path of a "
        "diffusers scheduler_config.json. Or one that is learned while training ('elbo list learned-weightings'): uncertainty is "
        "EDM2's, the schedule's density over the error at each noise level. With :monotone, such a "
        "weighting never rises.",
        names="elbocli.core.weighting_curves.ALL_WEIGHTINGS",
    )
    bias: Number | None = setting(None, "Parameter bias of the weighting; 2 is :bias=2.", stored=False, preset=False)
    shift: Number | Literal["auto"] | None = setting(
        None, "Shift w in logsnr; auto is 2 log(64/d) at d pixels.", metavar="NUMBER|auto", stored=False
    )
    monotone: bool | None = setting(None, "Hold the weighting constant left of its peak.", stored=False, preset=False)
    prediction: str = setting("v", "Network's output; see 'elbo list predictions'.", names="elbocli.core.prediction.PREDICTIONS")
    logsnr_min: float = setting(-15.0, "Noisiest level.", ge=-50, le=50)
    logsnr_max: float = setting(15.0, "Cleanest level.", ge=-50, le=50)

    schedule: str = setting(
        "cosine",
        "Noise levels: NAME, FILE of 'elbo adapt', or adaptive.",
        group="Schedule, data and network",
        more="The schedule changes only the variance of the loss, except under the weighting uncertainty. adaptive is fitted while "
        "training. FILE may also be a diffusers scheduler_config.json. Each also takes shift=; size= is that of the images "
        "unless given.",
        names="elbocli.core.schedule_curves.SCHEDULES",
        words=(ADAPTIVE,),
    )
    t_sampling: Literal["low-discrepancy", "independent"] = setting("low-discrepancy", "How t is drawn in a batch.", flags="")
    floor: float = setting(0.01, "Least density, relative to uniform.", gt=0, le=1, flags="")

    flip: bool = setting(False, "Mirror half of the images; refused for latents.")
    conditional: bool | None = setting(
        None, "Condition on classes.", shown="if several", flags="--conditional/--unconditional", stored=False, preset=False
    )
    label_dropout: float = setting(0.1, "Share of images trained without class, for guidance.", ge=0, le=1)

    steps: int = setting(100_000, "Updates in all.", group="Optimizer", free=True, ge=1)
    batch_size: int = setting(256, "Images per update.", le=10**6, ge=1)
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw",
        "muon is for matrices and kernels.",
        more="muon moves the matrices and convolution kernels inside the network's blocks along their orthogonalised momentum, "
        "and all other weights as adamw does. The learning rates are comparable.",
    )
    lr: float = setting(1e-4, "Learning rate.", gt=0, le=1e3)
    warmup_steps: int = setting(1000, "Updates over which lr rises from zero.", paced=True)
    lr_decay: str = setting(
        "constant",
        "constant, cosine, linear:share=S or rsqrt:ref=STEPS.",
        more="After n updates, lr and its warm-up are multiplied by final + (1 - final)(1 + cos(pi n/steps))/2 (cosine), by "
        "final + (1 - final) min((1 - n/steps)/share, 1) (linear; share is 1 unless given), or by 1/sqrt(max(n/ref, 1)) (rsqrt, "
        "as EDM2 does it; ref is 70000 unless given). cosine:final=.1 ends at a tenth of lr; final is 0 unless given. "
        "linear:share=.2 decays in the last fifth of the updates. A run that goes on with other --steps follows the curve of the "
        "new number from there.",
        names="elbocli.core.learning_rate.LR_DECAYS",
    )
    weight_decay: float = setting(0.0, "Weight decay.", shown="0", ge=0, le=1e3)
    beta2: float = setting(0.999, "beta2 of AdamW; beta1 is 0.9.", ge=0, le=0.9999999, flags="")
    adam_eps: float = setting(1e-8, "epsilon of AdamW.", gt=0, le=1, flags="")
    grad_clip: float = setting(1.0, "Clip the gradient norm to this.", ge=0, le=LARGEST, zero="none")

    device: str = setting(
        AUTO,
        "cpu, cuda, cuda:1.",
        group=SPEED,
        more="Without this option, $ELBO_DEVICE names the device.",
        shown="cuda, else cpu",
        metavar="NAME",
        free=True,
        preset=False,
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = setting(
        AUTO,
        "auto, fp32, tf32, bf16 or fp16.",
        metavar="FORMAT",
        more="The number format of the network. fp32 is strict; tf32 multiplies with 10-bit mantissas on CUDA, and is fp32 on a CPU; bf16 and fp16 are by "
        "autocast, with fp32 weights. auto keeps the run's own if it continues; else it is fp32 on a CPU, and on "
        "CUDA bf16 for presets that are meant for a GPU, if the card supports it, else tf32. A run may go from fp32 to tf32 and back.",
        shown="auto",
    )
    compile: bool | None = setting(
        None,
        "torch.compile the network.",
        more="The start takes a minute or more longer. If compilation fails, training goes on without, with a warning. On "
        "CUDA, the kernels of networks of up to 100 million parameters are also replayed as CUDA graphs, where one process "
        "sees a whole batch at once, without --activation-checkpointing.",
        shown="on CUDA",
        free=True,
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "Hold all weights, or a share.",
        more="Each process holds all weights (ddp) or a share of them (fsdp).",
        free=True,
        shown="ddp",
    )
    micro_batch: int = setting(
        0,
        "Images per process at a time.",
        more="The gradients of a batch are added up. auto takes the process's whole share of the batch on a CPU, and as many "
        "as are planned to fit on CUDA. elbo takes fewer if all parts then have one size and are fewer than twice as many.",
        le=10**6,
        free=True,
        zero=AUTO,
        shown=AUTO,
    )
    activation_checkpointing: bool = setting(False, "Recompute activations: less memory, but slower.", free=True)

    ema: tuple[str, ...] = setting(
        ("0.9999",),
        "Average, or its decay; may be repeated.",
        group=KEPT,
        more="A decay is per update. Previews, validation, sample and bound use the first.",
        names="elbocli.core.averages.AVERAGES",
        parse="elbocli.core.averages.canonical",
    )
    snapshot_every: int = setting(
        0,
        "Updates per snapshot for 'elbo ema'.",
        more="Snapshots are of the power averages. Where --ema names none, those of std 0.05 and 0.1 are added. Without "
        "this option or a preset's number, it is steps/20 if --ema names one, else none.",
        free=True,
        zero="none",
    )
    save_every: int = setting(1000, "Updates per checkpoint.", free=True, ge=1, paced=True)
    keep_last: int = setting(2, "Checkpoints to keep.", free=True, shown="2", ge=1)
    keep_every: int = setting(0, "Updates per permanent checkpoint.", free=True, zero="none", shown="none")
    log_every: int = setting(100, "Updates per line of the logs.", ge=1, paced=True)
    preview_every: int = setting(5000, "Updates per preview picture.", free=True, zero="none")

    val: str = setting("", "Validate on this dataset, packed like DATA.h5.", group=VALIDATION, metavar="PATH", free=True)
    val_split: int = setting(0, "Number of images to hold out.")
    val_every: int = setting(0, "Updates per validation.", free=True, zero=AUTO, shown="2 % of the work")
    val_images: int = setting(0, "Most images per validation.", free=True, zero="all", shown="all")

    eval_every: int = setting(
        0,
        "Updates per evaluation.",
        more="Also one at the end. Samples of the first average are drawn as 'elbo sample' draws them by default, and "
        "scored as by 'elbo eval'; image i depends on (seed, i) alone. Each evaluation is a line of metrics.jsonl, with the scores, their standard errors, the number of samples and "
        "the seconds taken, which images_per_s leaves out. Training goes on as without evaluations.",
        free=True,
        zero="none",
        shown="none",
    )
    eval_samples: int = setting(
        0,
        "Number of samples.",
        more="auto is 1000, or the number of the dataset's images if that is lower. Scores compare only at equal numbers.",
        free=True,
        zero=AUTO,
        le=10**6,
        shown="1000 or fewer",
    )
    eval_metrics: str = setting("fid", "See 'elbo list metrics'.", metavar="LIST", free=True, shown="fid")
    eval_ref: str = setting(
        "",
        "Score against this.",
        more="As of 'elbo eval --ref': by default all images of the dataset, held-out images among them. Statistics, as "
        "'elbo eval --save-stats' writes them, save the time of extracting features at each start.",
        metavar="PATH",
        free=True,
        preset=False,
        shown="DATA.h5",
    )

    def __post_init__(self) -> None:
        if self.val and self.val_split:
            raise UsageError("--val names validation data, --val-split splits the training data; leave out --val or --val-split")
        if self.micro_batch > self.batch_size:
            raise UsageError(f"--micro-batch is {self.micro_batch}; lower it to at most --batch-size, {self.batch_size}")

    def stored(self) -> dict[str, Any]:
        """Return the settings that config.yaml has, with lists for tuples."""
        return {name: plain(getattr(self, name)) for name in STORED}

    def written(self) -> dict[str, Any]:
        """Return the settings as config.yaml has them, with words such as 'none' for 0."""
        return {name: value or SETTINGS[name].zero or value for name, value in self.stored().items() if self.states(name)}

    def states(self, name: str) -> bool:
        """Tell whether config.yaml has a setting, which an imported run may lack."""
        return self.stated is None or name in self.stated


SETTINGS = TrainSettings.declared()
STORED = [name for name, declared in SETTINGS.items() if declared.stored]
PRESET_SETTINGS = [name for name, declared in SETTINGS.items() if declared.preset]

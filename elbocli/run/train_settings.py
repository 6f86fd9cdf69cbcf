"""The settings of `elbo train`, each declared once: type, bounds, help, group."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from elbocli.core.registry import LEARNED, nearest
from elbocli.core.training import AUTO, FORMER, canonical
from elbocli.errors import UsageError

LARGEST = 1e6
LARGEST_COUNT = 10**12
LARGEST_SEED = 2**63 - 1
ADAPTIVE = "adaptive"

RUN = "Run"
SPEED = "Speed and memory"
KEPT = "What is kept"
VALIDATION = "Validation and scores"

IN_UNITS = re.compile(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m(?:in)?)?(?:([0-9.]+)s)?")
IN_COLONS = re.compile(r"(?:(?:([0-9]+)-)?([0-9]+):)?([0-9]+):([0-9][0-9])")
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]


def seconds(value: Any) -> Any:
    """Return a duration in seconds.

    value: a number of seconds, or text such as 3h50m, 90s, 1.5h, 2d, MM:SS, HH:MM:SS or D-HH:MM:SS; 0 is no limit.
    Raises ValueError for other text, even '90', which some job schedulers read as minutes.
    """
    if not isinstance(value, str) or value == "0":
        return value
    text = value.lower().replace(" ", "")
    found = IN_COLONS.fullmatch(text) or IN_UNITS.fullmatch(text)
    if not found or not text:
        raise ValueError("expected a duration like 3h50m, 90s, 1.5h or 1:30:00")
    return sum(float(part or 0) * each for part, each in zip(found.groups(), (86400, 3600, 60, 1)))


def canonical_auxiliary(value: Any) -> tuple[str, ...]:
    """Return the SPECs of auxiliary losses, with all parameters; () for 'none'. Raises UsageError."""
    from elbocli.nn.auxiliary import canonical  # imports torch

    return canonical(value)


def about(help: str, **said: Any) -> Meta:
    """Declare a setting, except its type and default.

    said: any of the following keys. more: text only for the man page.
    group: heading, in the help, of this and the following settings.
    ge, gt, le: bounds of the value. parse: function that reads the value from text.
    names: module and name of a registry of allowed names. words: further allowed values.
    zero: word for 0, such as 'none'. flags: the option's name; "": no option.
    metavar: placeholder of the value in the help. shown: default in the help; "": no default.
    paced: whether the default shrinks with --steps when a run is shorter than its preset.
    free: whether a resumed run may change the setting. preset: whether presets may set it; default: as `stored`.
    stored: whether config.yaml has the setting; False: `resolve` merges the setting into another one.
    """
    bounds = {key: said.pop(key) for key in ("ge", "gt", "le") if key in said}
    return Meta(description=help, extra=said, **bounds)


def count(help: str, ge: int = 0, le: int = LARGEST_COUNT, **said: Any) -> Meta:
    """Declare an integer setting. said: further keys of `about`."""
    return about(help, ge=ge, le=le, **said)


class TrainSettings(Struct, frozen=True, kw_only=True):
    """Training settings of a run. Raises UsageError for settings that contradict each other.

    Settings with stored=False, such as `bias`, aren't saved: `resolve` merges each into another setting.
    """

    preset: Annotated[
        str,
        about(
            "NAME, or a FILE.yaml.",
            group=RUN,
            shown="by size",
            names="elbocli.nn.presets.NAMES",
            metavar="NAME",
            preset=False,
        ),
    ] = ""
    seed: Annotated[int, count("Seed of all random draws.", shown="0", le=LARGEST_SEED)] = 0
    time_limit: Annotated[
        float,
        about(
            "Save and end after 3h50m, 90s, 1:30:00.",
            more="The same command resumes the run. Leave time to start and to save.",
            ge=0,
            zero="none",
            le=1000 * 86400,
            metavar="DURATION",
            free=True,
            parse=seconds,
        ),
    ] = 0.0

    weighting: Annotated[
        str,
        about(
            "w(logsnr); see 'elbo weights list'.",
            group="Objective and output of the network",
            more="Or a loss as papers write it, TARGET-mse[:FACTOR]@SCHEDULE, FACTOR one of 'elbo weights list factors' or a "
            "weighting: v-mse@cosine, x-mse:min-snr:5@linear-beta. Or schedule:SCHEDULE, its density; or the path of a "
            "diffusers scheduler_config.json. Or uncertainty, learned while training as EDM2's: the schedule's density over the "
            "error at each noise level, which uncertainty:monotone keeps from rising.",
            names="elbocli.core.weighting_curves.WEIGHTINGS",
            words=(LEARNED,),
            shown="sigmoid",
        ),
    ] = "sigmoid"
    bias: Annotated[Number | None, about("Parameter bias of the weighting; 2 is :bias=2.", stored=False)] = None
    shift: Annotated[
        Number | Literal["auto"] | None,
        about("Shift w in logsnr; auto is 2 log(64/d) at d pixels.", metavar="NUMBER|auto", stored=False, preset=True),
    ] = None
    monotone: Annotated[bool | None, about("Hold the weighting constant left of its peak.", stored=False)] = None
    prediction: Annotated[
        str,
        about("Network's output; see 'elbo weights list predictions'.", names="elbocli.core.prediction.PREDICTIONS"),
    ] = "v"
    auxiliary: Annotated[
        tuple[str, ...],
        about(
            "Add a loss of hidden states: no ELBO.",
            more="May be repeated. NAME:key=value,… of 'elbo weights list auxiliary', such as dispersive:weight=0.5,temperature=0.5,block=3. block "
            "counts the network's blocks from 1; 0 is the block at a quarter of the network. The logs have each loss as "
            "auxiliary_NAME, without its weight, and all other numbers without it. none removes the losses that --init or a "
            "preset sets.",
            names="elbocli.nn.auxiliary.AUXILIARIES",
            words=("none",),
            metavar="SPEC",
            parse=canonical_auxiliary,
        ),
    ] = ()
    features: Annotated[
        str,
        about(
            "Features of DATA.h5's images, for repa.",
            more="They are made by 'elbo eval DATA.h5 --save-features FILE'.",
            metavar="FILE",
        ),
    ] = ""
    logsnr_min: Annotated[float, about("Noisiest level.", ge=-50, le=50)] = -15.0
    logsnr_max: Annotated[float, about("Cleanest level.", ge=-50, le=50)] = 15.0

    schedule: Annotated[
        str,
        about(
            "Noise levels: NAME, FILE of 'elbo adapt', or adaptive.",
            group="Schedule, data and network",
            more="The schedule changes only the variance of the loss, except under the weighting uncertainty. adaptive is fitted while "
            "training. FILE may also be a diffusers scheduler_config.json. Each also takes shift=; size= is that of the images "
            "unless given.",
            names="elbocli.core.schedule_curves.SCHEDULES",
            words=(ADAPTIVE,),
        ),
    ] = "cosine"
    t_sampling: Annotated[Literal["low-discrepancy", "independent"], about("How t is drawn in a batch.", flags="")] = (
        "low-discrepancy"
    )
    floor: Annotated[float, about("Least density, relative to uniform.", gt=0, le=1, flags="")] = 0.01

    flip: Annotated[bool, about("Mirror half of the images; refused for latents.")] = False
    conditional: Annotated[
        bool | None,
        about("Condition on classes.", shown="if several", flags="--conditional/--unconditional", stored=False),
    ] = None
    label_dropout: Annotated[float, about("Share of images trained without class, for guidance.", ge=0, le=1)] = 0.1

    steps: Annotated[int, count("Updates in all.", group="Optimizer", free=True, ge=1)] = 100_000
    batch_size: Annotated[int, count("Images per update.", le=10**6, ge=1)] = 256
    optimizer: Annotated[
        Literal["adamw", "muon"],
        about(
            "muon is for matrices and kernels.",
            more="muon moves the matrices and convolution kernels inside the network's blocks along their orthogonalised momentum, "
            "and all other weights as adamw does. The learning rates are comparable.",
        ),
    ] = "adamw"
    lr: Annotated[float, about("Learning rate.", gt=0, le=1e3)] = 1e-4
    warmup_steps: Annotated[int, count("Updates over which lr rises from zero.", paced=True)] = 1000
    lr_decay: Annotated[
        str,
        about(
            "constant, cosine, linear or rsqrt:ref=STEPS.",
            more="After n updates, lr and its warm-up are multiplied by final + (1 - final)(1 + cos(pi n/steps))/2 (cosine), by "
            "1 - (1 - final) n/steps (linear), or by 1/sqrt(max(n/ref, 1)) (rsqrt, as EDM2 does it; ref is 70000 unless given). "
            "cosine:final=.1 ends at a tenth of lr; final is 0 unless given. A run that goes on with other --steps follows the "
            "curve of the new number from there.",
            names="elbocli.core.training.LR_DECAYS",
        ),
    ] = "constant"
    weight_decay: Annotated[float, about("Weight decay.", shown="0", ge=0, le=1e3)] = 0.0
    beta2: Annotated[float, about("beta2 of AdamW; beta1 is 0.9.", ge=0, le=0.9999999, flags="")] = 0.999
    adam_eps: Annotated[float, about("epsilon of AdamW.", gt=0, le=1, flags="")] = 1e-8
    grad_clip: Annotated[float, about("Clip the gradient norm to this.", ge=0, le=LARGEST, zero="none")] = 1.0

    device: Annotated[
        str,
        about(
            "cpu, cuda, cuda:1.",
            group=SPEED,
            more="Without this option, $ELBO_DEVICE names the device.",
            shown="cuda, else cpu",
            metavar="NAME",
            free=True,
            preset=False,
        ),
    ] = AUTO
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp16"],
        about(
            "auto, fp32, tf32, bf16 or fp16.",
            metavar="FORMAT",
            more="The number format of the network. fp32 is strict; tf32 multiplies with 10-bit mantissas on CUDA, and is fp32 on a CPU; bf16 and fp16 are by "
            "autocast, with fp32 weights. auto keeps the run's own if it continues; else it is fp32 on a CPU, and on "
            "CUDA bf16 for presets that are meant for a GPU, if the card supports it, else tf32. A run may go from fp32 to tf32 and back.",
            shown="auto",
        ),
    ] = AUTO
    compile: Annotated[
        bool | None,
        about(
            "torch.compile the network.",
            more="The start takes a minute or more longer. If compilation fails, training goes on without, with a warning. On "
            "CUDA, the kernels of networks of up to 100 million parameters are also replayed as CUDA graphs, where one process "
            "sees a whole batch at once, without --activation-checkpointing.",
            shown="on CUDA",
            free=True,
        ),
    ] = None
    parallel: Annotated[
        Literal["ddp", "fsdp"],
        about(
            "Hold all weights, or a share.",
            more="Each process holds all weights (ddp) or a share of them (fsdp).",
            free=True,
            shown="ddp",
        ),
    ] = "ddp"
    micro_batch: Annotated[
        int,
        count(
            "Images per process at a time.",
            more="The gradients of a batch are added up. auto takes the process's whole share of the batch on a CPU, and as many "
            "as fit on CUDA. elbo takes fewer if all parts then have one size and are fewer than twice as many.",
            le=10**6,
            free=True,
            zero=AUTO,
            shown=AUTO,
        ),
    ] = 0
    activation_checkpointing: Annotated[bool, about("Recompute activations: less memory, but slower.", free=True)] = False

    ema: Annotated[
        tuple[str, ...],
        about(
            "Average, or its decay; may be repeated.",
            group=KEPT,
            more="A decay is per update. Previews, validation, sample and bound use the first.",
            names="elbocli.core.training.AVERAGES",
            parse=canonical,
        ),
    ] = ("0.9999",)
    snapshot_every: Annotated[
        int,
        count(
            "Updates per snapshot for 'elbo ema'.",
            more="Snapshots are of the power averages. Where --ema names none, those of std 0.05 and 0.1 are added. The default "
            "is steps/20 if --ema names one, else none.",
            free=True,
            zero="none",
        ),
    ] = 0
    save_every: Annotated[int, count("Updates per checkpoint.", free=True, ge=1, paced=True)] = 1000
    keep_last: Annotated[int, count("Checkpoints to keep.", free=True, shown="2", ge=1)] = 2
    keep_every: Annotated[int, count("Updates per permanent checkpoint.", free=True, zero="none", shown="none")] = 0
    log_every: Annotated[int, count("Updates per line of the logs.", ge=1, paced=True)] = 100
    preview_every: Annotated[int, count("Updates per preview picture.", free=True, zero="none")] = 5000

    val: Annotated[str, about("Validate on this dataset, packed like DATA.h5.", group=VALIDATION, metavar="PATH", free=True)] = ""
    val_split: Annotated[int, count("Number of images to hold out.")] = 0
    val_every: Annotated[int, count("Updates per validation.", free=True, zero=AUTO, shown="2 % of the work")] = 0
    val_images: Annotated[int, count("Most images per validation.", free=True, zero="all", shown="all")] = 0

    eval_every: Annotated[
        int,
        count(
            "Updates per evaluation.",
            more="Also one at the end. Samples of the first average, by 32 steps of ddim, are scored as 'elbo eval' scores "
            "them; image i depends on (seed, i) alone. Each evaluation is a line of metrics.jsonl, with the scores, their standard errors, the number of samples and "
            "the seconds taken, which images_per_s leaves out. Training goes on as without evaluations.",
            free=True,
            zero="none",
            shown="none",
        ),
    ] = 0
    eval_samples: Annotated[
        int,
        count(
            "Number of samples.",
            more="auto is 1000, or the number of the dataset's images if that is lower. Scores compare only at equal numbers.",
            free=True,
            zero=AUTO,
            le=10**6,
            shown="1000 or fewer",
        ),
    ] = 0
    eval_metrics: Annotated[
        str,
        about("See 'elbo weights list metrics'.", metavar="LIST", free=True, shown="fid"),
    ] = "fid"
    eval_ref: Annotated[
        str,
        about(
            "Score against this.",
            more="As of 'elbo eval --ref': by default all images of the dataset, held-out images among them. Statistics, as "
            "'elbo eval --save-stats' writes them, save the time of extracting features at each start.",
            metavar="PATH",
            free=True,
            preset=False,
            shown="DATA.h5",
        ),
    ] = ""

    def __post_init__(self) -> None:
        if self.val and self.val_split:
            raise UsageError("--val names validation data, --val-split splits the training data; leave out --val or --val-split")
        if self.micro_batch > self.batch_size:
            raise UsageError(f"--micro-batch is {self.micro_batch}; lower it to at most --batch-size, {self.batch_size}")

    def stored(self) -> dict[str, Any]:
        stored = {name: getattr(self, name) for name, setting in SETTINGS.items() if setting.says("stored", True)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in stored.items()}

    def written(self) -> dict[str, Any]:
        """Return the settings as config.yaml has them, with words such as 'none' for 0."""
        return {name: SETTINGS[name].written(value) for name, value in self.stored().items()}


class Setting(NamedTuple):
    """A training setting.

    group: heading in the help. hint: type with bounds. kind: type without bounds and `| None`. meta: result of `about`.
    """

    group: str
    hint: Any
    kind: Any
    meta: Meta

    def says(self, key: str, otherwise: Any = "") -> Any:
        """Return an argument of the setting's `about(…)`; `otherwise` if absent."""
        return (self.meta.extra or {}).get(key, otherwise)

    def written(self, value: Any) -> Any:
        """Return the setting's word for 0, such as 'none', if `value` is 0, else `value`."""
        return value or self.says("zero", value)


def _settings() -> Iterator[tuple[str, Setting]]:
    group = ""
    for name, hint in get_type_hints(TrainSettings, include_extras=True).items():
        kind, meta = get_args(hint)
        group = meta.extra.get("group", group)
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
        yield name, Setting(group, hint, get_args(kind)[0] if get_origin(kind) is Annotated else kind, meta)


SETTINGS = dict(_settings())
PRESET_SETTINGS = [name for name, each in SETTINGS.items() if each.says("preset", each.says("stored", True))]
PACED = {name for name, each in SETTINGS.items() if each.says("paced")}


def convert_text(value: Any, hint: Any) -> Any:
    """Convert text or a YAML value to an annotated type, such as "1e3" to an int. Raises ValueError."""
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        number = None
        with suppress(ValueError):
            number = float(value) if isinstance(value, str) else None
        if number is not None and not value.isdigit():  # ".5" is no number in JSON, by whose rules msgspec converts
            return convert_text(number, hint)
        said = str(error).replace("`", "")
        raise ValueError(said[0].lower() + said[1:]) from error


def convert_settings(values: Mapping[str, Any], known: Collection[str] = SETTINGS) -> dict[str, Any]:
    """Convert settings to their types. Raises UsageError for a name outside `known`, or a bad value."""
    found = {}
    for name, value in values.items():
        name = FORMER.get(name, name)
        if name not in known:
            raise UsageError(f"unknown setting {name!r}; {nearest(name, known)}")
        setting = SETTINGS[name]
        parse = setting.says("parse", None)
        try:
            zero = value == setting.says("zero", ...)
            found[name] = 0 if zero else convert_text(parse(value) if parse else value, setting.hint)
        except ValueError as error:
            raise UsageError(f"{name} is {value!r}: {error}") from error
    return found

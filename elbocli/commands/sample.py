"""Command line of `elbo sample`."""

from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    GUIDANCE,
    PATH,
    SCHEDULE,
    STREAM,
    Command,
    Named,
    NameOrFile,
    Output,
    batch_option,
    command_line,
    common,
    device_options,
    guidance_of,
    guidance_options,
    option,
    overwrite_option,
    plugin_option,
    seed_option,
    value,
    weights_option,
    zoom_option,
)
from elbocli.sampling.samplers import USUAL

GROUPS = {
    "Images": ("n", "classes", "seed", "rounding", "out", "zoom", "overwrite"),
    "Weights": ("weights", "autoencoder"),
    "Sampler": ("sampler", "steps", "schedule", "spacing", "start", "threshold"),
    "Guidance": GUIDANCE,
    "Speed and memory": ("batch_size", "device", "precision", "compile"),
}


@click.command(cls=Command, groups=GROUPS)
@click.argument("run", type=PATH)
@option("-n", "--num-samples", "n", type=value(int, ge=1, le=10**9), default=64, help="Number of images.")
@option(
    "--sampler",
    type=Named("elbocli.sampling.samplers.SAMPLERS"),
    default=USUAL,
    help="NAME or NAME:key=value,…; see 'elbo list samplers'.",
)
@option(
    "--steps",
    type=value(int, ge=1, le=100_000),
    help="Number of noise levels.  [default: the sampler's, often 25]",
)
@option(
    "--schedule",
    type=SCHEDULE,
    help="Grid of noise levels within the run's range: NAME:key=value,…, FILE, or run.  [default: the sampler's]",
    more="FILE is a schedule of 'elbo adapt', or a diffusers scheduler_config.json. 'run' is the schedule that the run "
    "was trained under; an adaptive one as of the checkpoint.",
)
@option(
    "--spacing",
    type=Named("elbocli.sampling.spacing.SPACINGS"),
    help="Levels of the schedule to visit: even, trailing, sit, timesteps (a subset), or stride (every k-th).  "
    "[default: even; timesteps for t-linear and similar; sit for SDEs]",
    more="even includes both ends of the range; trailing is JiT's, from which the last step of 1/T ends at clean data; sit is "
    "SiT's and REPA's, whose last step is .04 long. "
    "timesteps is ADM's and DiT's '250', with the first and the last timestep; stride is ADM's 'ddim25'. Without "
    "this option, a diffusers scheduler_config.json is visited at evenly spaced timesteps.",
)
@option(
    "--start",
    type=Named("elbocli.core.noise.STARTS"),
    default="unit",
    help="Noise to start from: of variance 1 (unit), or sigma_max (edm) as EDM does.",
    more="EDM starts from y = z/alpha = sigma_max eps, without the small image part, of variance 1, that y has at the noisiest "
    "level: at sigma_max 80 this is 0.008 % less noise.",
)
@guidance_options
@option(
    "--threshold",
    type=Named("elbocli.sampling.guidance.THRESHOLDS"),
    default="none",
    help="Keep each estimate of the image within the range of pixels, after guidance: static, or dynamic:percentile=P.",
)
@option(
    "--classes",
    type=NameOrFile(),
    metavar="data|balanced|random|LIST|FILE",
    help="Class of image i: as frequent as in the training data (data), i mod K (balanced), random, or numbers or names, repeated "
    "(3,5,7, or FILE).  [default: data if unbalanced, else balanced]",
    more="The training data are unbalanced if a chi-square test finds that their class frequencies differ by more than chance (p < "
    "0.001). data draws each class independently, so that image i does not depend on -n. FILE is text with a "
    "number or a name on each line.",
)
@weights_option
@seed_option
@batch_option
@device_options
@option(
    "--compile",
    type=click.Choice(["off", "graphs", "on"]),
    default="graphs",
    help="graphs: CUDA graphs; on: also torch.compile.",
    more="Compiling takes minutes at first. Without CUDA, graphs do nothing.",
)
@option(
    "--autoencoder",
    type=PATH,
    metavar="DIR",
    help="Decodes latents: a diffusers AutoencoderKL.  [default: the one they were made with]",
)
@option(
    "--rounding",
    type=Named("elbocli.core.pixels.ROUNDINGS"),
    help="Rounding to pixel levels: nearest, half-up (edm, dit, sit) or truncate (adm; edm2's latents).  [default: nearest; "
    "for latents, their convention's]",
    more="half-up (also edm, dit, sit) differs from nearest only in halves. truncate (also adm, edm2) is half a level darker on "
    "average, which a FID sees; latents of the convention edm2 are truncated. The arithmetic is float32; EDM's is float64.",
)
@option(
    "-o",
    "--out",
    type=Output("samples", "images", "a folder of PNGs", stdout=True, streams=True),
    default="-",
    help="- (an NPY stream), .npy, .npz, .h5, .png (a sheet), or a folder name for PNGs.",
    more="A contact sheet has rows for each class, with its name, where there are at most 16 classes, or as many images of each.",
)
@zoom_option
@overwrite_option
@plugin_option
@common
def sample(run: Path, out: Path, **options: Any) -> None:
    """Draw images from RUN, or from one of its checkpoints.

    Without -o, images go to standard output as one NPY array, for 'elbo eval' or numpy.load. If the command is
    interrupted, run it again: it continues the unfinished file. Under torchrun, processes share the work. Image i
    depends on (seed, i) alone.
    """
    from elbocli.core.noise import STARTS
    from elbocli.core.pixels import ROUNDINGS
    from elbocli.data.samples import refuse_terminal
    from elbocli.files.atomic import streams, writing
    from elbocli.runtime.processes import joined
    from elbocli.sampling.draw import SampleSettings, draw_samples
    from elbocli.sampling.guidance import THRESHOLDS
    from elbocli.sampling.samplers import parse_sampler
    from elbocli.sampling.spacing import SPACINGS

    target: Any = out
    if out == STREAM or (streams(out) and not Command.silent):  # only rank 0 writes to a pipe or a device
        with writing(out):
            target = click.get_current_context().with_resource(click.open_file(out, "wb"))
        refuse_terminal(target)
    parsers = {
        "sampler": parse_sampler,
        "threshold": THRESHOLDS.parse,
        "start": STARTS.parse,
        "spacing": SPACINGS.parse,
        "rounding": ROUNDINGS.parse,
    }
    parsed = {name: parse(options[name]) for name, parse in parsers.items() if options[name]}
    guidance = guidance_of(options)
    given = {name: value for name, value in options.items() if value is not None} | parsed
    settings = SampleSettings(guidance=guidance, overwrite=Command.overwrite, command=command_line(), **given)
    with joined(settings.device) as world:
        draw_samples(run, target, settings, world)

"""`elbo eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from elbocli.cli.options import PATH, STREAM, Command, Count, common, overwrite_option, stdin_or_fail
from elbocli.nn.extractors import EXTRACTORS

METRICS = ("fid", "is", "accuracy")


class Metrics(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A comma-separated list of metrics."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        chosen = tuple(word.strip() for word in str(value).split(",") if word.strip())
        for word in chosen:
            if word not in METRICS:
                self.fail(f"no metric is called {word!r}; known: {', '.join(METRICS)}", param, ctx)
        if not chosen:
            self.fail(f"name at least one of {', '.join(METRICS)}", param, ctx)
        return chosen


@click.command("eval", cls=Command)
@click.argument("samples", type=PATH, default="-", metavar="[SAMPLES|-]")
@click.option(
    "--ref", type=PATH, help="What to compare with: a dataset (.h5), or statistics (.npz; ADM's and EDM's too)."
)
@click.option(
    "--metrics",
    type=Metrics(),
    default="fid,is",
    show_default=True,
    help="fid, is, accuracy (of class-conditional samples, by the extractor's logits).",
)
@click.option(
    "--extractor",
    metavar="NAME|FILE.pt2",
    default="inception-v3-compat",
    show_default=True,
    help="; ".join(f"{e.name}: {e.formula} ({e.source})" for e in EXTRACTORS.values())
    + "; or a torch.export program: uint8 NCHW to features, or (features, logits).",
)
@click.option(
    "--extractor-weights",
    type=PATH,
    help="Weights of inception-v3-compat.  [default: fetched once into the user's cache]",
)
@click.option("--save-stats", type=PATH, help="Also save the samples' statistics, to be a --ref later.")
@click.option(
    "--classes", default="", metavar="balanced|random|LIST", help="The classes a stream was drawn with, for accuracy."
)
@click.option(
    "--seed",
    type=Count(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="The seed a stream was drawn with, for --classes random.",
)
@click.option("--batch", type=Count(1, 10**6), default=64, show_default=True, help="Images per call of the extractor.")
@click.option("--device", metavar="NAME", default="auto", help="cpu, cuda, cuda:1, …  [default: cuda if there is one]")
@overwrite_option
@common
def evaluate(samples: Path, ref: Path | None, save_stats: Path | None, overwrite: bool, **options: Any) -> None:
    """Score SAMPLES (a stream, .npy, .npz, .h5 or a folder of images) against a reference; one JSON object.

    Only the published Inception network may call its number frechet_inception_distance; any other
    extractor's is frechet_distance[NAME].
    """
    from elbocli.cli.progress import show
    from elbocli.files.atomic import refuse_existing
    from elbocli.loops import evaluate as loop

    if save_stats is not None:
        refuse_existing(save_stats, overwrite)
    source = stdin_or_fail("samples") if samples == STREAM else samples
    result = show(loop.run(source, ref, loop.Settings(**options), save_stats))
    click.echo(json.dumps(result, indent=1, allow_nan=False))

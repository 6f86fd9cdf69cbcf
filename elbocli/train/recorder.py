"""Logs, previews and validation of a run in training; targets of --log-to."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from elbocli.core.adaptive import BinSums, bin_edges, bin_middles
from elbocli.core.elbo import bits_per_dimension, prior, reconstruction
from elbocli.core.loss import Network, denoising_losses
from elbocli.core.samplers import parse_sampler
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files import losslog
from elbocli.files.atomic import flush, writing
from elbocli.files.contact_sheet import Layout, lay_out, rows_of_classes, write_contact_sheet
from elbocli.files.dataset import Dataset
from elbocli.files.reading import read_text, reading
from elbocli.files.recognise import check_outputs
from elbocli.files.records import parse_json
from elbocli.files.schedule_file import finite
from elbocli.nn.networks.diffusers import affine
from elbocli.run.config import read_config
from elbocli.run.open import check_alike
from elbocli.run.settings import Resolved
from elbocli.run.train_settings import ADAPTIVE, TrainSettings
from elbocli.runtime.device import Precision, sent
from elbocli.runtime.progress import log
from elbocli.sample.draw import Decoder, SampleSettings, open_decoder
from elbocli.train.batches import LEAST_HELD_OUT, network_input, split_rows
from elbocli.train.scores import Evaluation, draw_averaged
from elbocli.train.state import TrainState
from elbocli.train.step import check

METRICS, LOSSES, VALIDATION = LOGS = ("metrics.jsonl", "losslog.jsonl", "validation.jsonl")
PREVIEW = SampleSettings(n=64, sampler=parse_sampler("dpmpp-2m"), steps=16)  # n: largest number of images
MOST_ROWS, SOME_ROWS = 10, 8  # previews show up to MOST_ROWS classes in full, and of more classes SOME_ROWS
FIRST_PREVIEW_S = 60.0  # seconds of training before the first preview

DRAWS = 4
SHARE = 0.02  # fraction of a run's computation for validation, if --val-every isn't given
STEP_COST = 3  # cost of a training image (forward and backward pass), in forward passes
GOLDEN = (math.sqrt(5) - 1) / 2
SCHEDULE = "uniform"


class Recorder:
    """Writer of a run's logs, previews and validation results, on rank 0 only.

    held_out: dataset and rows of the validation images; None: no validation.
    lengths: log's file name → bytes at the checkpoint to resume from; longer logs are truncated.
    log_to: names in PACKAGES, or paths of JSONL files.
    extractor: values of --eval-extractor and --eval-weights; None: the extractor's default weights.
    Raises UsageError: previews or --eval-every don't fit the run. Raises FormatError, DataError.
    """

    def __init__(
        self,
        state: TrainState,
        held_out: tuple[Dataset, np.ndarray] | None,
        out: Path,
        lengths: dict[str, int],
        log_to: Iterable[str],
        extractor: tuple[str, Path | None],
    ):
        self.state, self.settings, self.world, self.out = state, state.settings, state.world, out
        settings, network = state.settings, state.resolved.network
        self.validation = Validation(held_out, state.resolved, state.device) if held_out else None
        if state.world.first:
            for name, size in log_lengths(out).items():
                with writing(out / name):
                    os.truncate(out / name, min(size, lengths.get(name, 0)))
            if not log_lengths(out).get(LOSSES):
                header = losslog.header(
                    state.edges,
                    dimensions=network.image_channels * network.image_size**2,
                    floor=settings.floor if settings.schedule == ADAPTIVE else None,
                    weighting=settings.weighting,
                    schedule=settings.schedule,
                    prediction=settings.prediction,
                )
                self._append(LOSSES, header)
            if self.validation:
                self._append(VALIDATION, self.validation.header_for(out / VALIDATION))
        self.decoder = None
        if settings.preview_every:
            with reading("previews can't be drawn; --preview-every none turns them off", kind=UsageError):
                self.decoder = open_decoder(state.resolved.data, network, state.device)
        self.evaluation = None
        if settings.eval_every:
            with reading("--eval-every: samples can't be scored", kind=UsageError):
                output = self.decoder or open_decoder(state.resolved.data, network, state.device)
                self.evaluation = Evaluation(state, output, *extractor)
        self.validated = False
        self.previewed = self.decoder is None or any((out / "previews").glob("*.png"))
        self.targets = LogTargets(log_to if state.world.first else (), out, state.steps_done)
        self._since, self._clock = state.steps_done, 0.0
        if self.validation and state.resolved.init is not None and not state.steps_done:
            self._validate(self.validation)  # the score of the weights that the run begins from
        self._begun = self._clock = time.monotonic()

    def first_preview_due(self) -> bool:
        """Return whether to draw the first preview now."""
        return not self.previewed and time.monotonic() - self._begun > FIRST_PREVIEW_S

    def after(self, early: bool) -> dict[str, Any]:
        """Log, validate, score and draw whatever is due; return numbers for the progress line.

        early: whether to draw a preview even if none is due. Raises NonFiniteError and DataError, on all ranks alike.
        """
        settings, step, values = self.settings, self.state.steps_done, dict[str, Any]()

        def due(every: int) -> bool:
            return step == settings.steps or step % every == 0

        if due(settings.log_every):
            values |= self._log()
        if self.validation and due(self.validation.every):
            values |= self._validate(self.validation)
        if self.evaluation and due(settings.eval_every):
            with self._apart():
                scores = self.evaluation.values()
            self._measured(scores)
            values |= scores
        if self.decoder and (early or due(settings.preview_every)):
            self._preview(self.decoder)
        return values

    def _log(self) -> dict[str, Any]:
        state = self.state
        check(state)
        weighting = state.weighting  # before `interval` updates a learned weighting
        sums, loss, norm, auxiliary = state.interval()
        now = time.monotonic()
        rate = (state.steps_done - self._since) * state.settings.batch_size / max(now - self._clock, 1e-9)
        self._clock, self._since = now, state.steps_done
        values = {
            "loss": finite(loss),
            "eps_mse": finite(float(sums[1].sum() / sums[0].sum())),
            **{key: finite(value) for key, value in auxiliary.items()},
            "lr": float(state.optimizer.param_groups[0]["lr"]),
            "grad_norm": finite(norm),
            "images_per_s": round(rate, 2),
        }
        self._measured(values)
        weight = weighting(bin_middles(state.edges)) if weighting.learned else None
        self._append(LOSSES, losslog.line(state.steps_done, state.images, sums, weight))
        return values

    def _validate(self, validation: Validation) -> dict[str, Any]:
        state, world = self.state, self.world
        validation.weighting = state.weighting  # a learned weighting has changed meanwhile
        if state.compiled and not self.validated:
            log.info("compiling the network for validation")
        self.validated = True
        with self._apart(), state.averaged():
            sums = world.added(validation.partial(state.spread.forward, world.rank, world.size))
        values = validation.finish(sums)
        self._measured(values)
        if state.steps_done:
            self._append(VALIDATION, losslog.line(state.steps_done, state.images, sums[:, :-2]))
        return values

    @contextmanager
    def _apart(self) -> Iterator[None]:
        # `images_per_s` leaves out the seconds that the block takes.
        check(self.state)  # also waits until the device has finished all updates
        begun = time.monotonic()
        yield
        self._clock += time.monotonic() - begun

    def _preview(self, decoder: Decoder) -> None:
        self.previewed = True
        with self._apart():
            images, layout = preview(self.state, decoder)
        path = self.out / "previews" / f"step-{self.state.steps_done:08d}.png"
        if self.world.first:
            with writing(path.parent):
                path.parent.mkdir(exist_ok=True)
            write_contact_sheet(path, images, layout)
        self.targets.write(self.state.steps_done, {SAMPLES: path})

    def _measured(self, values: dict[str, Any]) -> None:
        row = losslog.MetricsRow(self.state.steps_done, self.state.images, values)
        self._append(METRICS, losslog.text_line(row))
        self.targets.write(row.step, {"images": row.images, **values})

    def _append(self, name: str, text: str) -> None:
        if self.world.first:
            with writing(self.out / name), open(self.out / name, "a") as file:
                file.write(text)


# --- append-only logs; a resumed run cuts them back to their lengths at the checkpoint, so that no step is in them twice ---


def log_lengths(run: Path) -> dict[str, int]:
    """Return the size in bytes of each existing log, by file name."""
    return {name: (run / name).stat().st_size for name in LOGS if (run / name).exists()}


def flush_logs(run: Path) -> None:
    """Flush the logs to disk. Raises DataError."""
    for name in log_lengths(run):
        with writing(run / name):
            flush(run / name)


# --- previews: pictures drawn with the averaged weights ---


def preview_labels(num_classes: int) -> np.ndarray | None:
    """Return the class of each preview image, int64; None: no classes.

    All shown classes get equally many of about PREVIEW.n images.
    """
    if num_classes < 1:
        return None
    shown = num_classes if num_classes <= MOST_ROWS else SOME_ROWS
    return np.tile(np.linspace(0, num_classes - 1, shown).round().astype(np.int64), PREVIEW.n // shown)


def preview(state: TrainState, output: Decoder) -> tuple[np.ndarray, Layout]:
    """Draw preview images with the averaged weights; must be called on all ranks.

    output: decoder from the sampler's output to pixels.
    Returns: images, uint8 [N, H, W, C], and their layout in a contact sheet.
    """
    network = state.resolved.network
    labels = preview_labels(network.num_classes)
    count = PREVIEW.n if labels is None else len(labels)
    drawn = draw_averaged(state, output, replace(PREVIEW, n=count), labels).numpy()
    return drawn, lay_out(drawn.shape[1], drawn.shape[2], rows_of_classes(count, labels, state.resolved.data.class_names or []))


# --- validation on held-out images: each image is scored at DRAWS noise levels, with the same noise in every validation ---


def open_held_out(settings: TrainSettings, dataset: Dataset, conditional: bool) -> tuple[Dataset, np.ndarray] | None:
    """Return the dataset and rows, int64 [N], of the validation images; None: no validation.

    Raises UsageError: the datasets don't match, or too few images are held out. FormatError: --val is not a dataset.
    """
    if settings.val_split:
        held, rows = dataset, split_rows(settings, dataset)[1]
    elif settings.val:
        held = Dataset(settings.val, latents=True)
        held.check_square()
        _check_fit(held, dataset, conditional)
        rows = np.arange(len(held))
    else:
        return None
    if 0 < settings.val_images < len(rows):
        chosen = Stream(settings.seed, "val-images").permutation(0, len(rows))[: settings.val_images]
        rows = rows[np.sort(chosen)]
    if len(rows) < LEAST_HELD_OUT:
        raise UsageError(
            f"{held.path}: validation needs {LEAST_HELD_OUT} images, found {len(rows)}; enlarge --val or --val-images"
        )
    return held, rows


def _check_fit(held: Dataset, trained: Dataset, conditional: bool) -> None:
    if held.payload_sha256 == trained.payload_sha256:
        raise UsageError(f"--val {held.path}: holds the training images; name another dataset, or use --val-split N")

    names = ["class_names"] if conditional and held.class_names and trained.class_names else []
    check_alike(held.identity(), trained.identity(), trained.path, ["image_size", "channels", *names])
    if conditional and held.num_classes > trained.num_classes:
        raise UsageError(f"--val {held.path}: has {held.num_classes} classes, expected {trained.num_classes}; leave classes out")


class Validation:
    """Held-out images, with fixed times and noise for each image.

    held: (dataset with the images, rows of the images). every: training steps between two validations.
    """

    def __init__(self, held: tuple[Dataset, np.ndarray], resolved: Resolved, device: torch.device):
        settings = self.settings = resolved.settings
        (self.dataset, self.rows), self.device = held, device
        self.weighting, self.prediction = resolved.weighting, resolved.prediction
        self.schedule = parse_schedule(SCHEDULE, settings.logsnr_min, settings.logsnr_max)
        self.edges = bin_edges(settings.logsnr_min, settings.logsnr_max)
        self.dimensions, self.conditional = math.prod(self.dataset.shape[1:]), resolved.network.num_classes > 0
        space = self.dataset.latent_space
        self._scaling = affine(space, device) if space else None
        # Times of an image are evenly spaced; their offsets are a low-discrepancy sequence over the images.
        start = Stream(settings.seed, "val-t").uniform(0, 1)
        offsets = (start + GOLDEN * np.arange(len(self.rows))) % 1.0
        self._t = torch.from_numpy((offsets[:, None] + np.arange(DRAWS)) / DRAWS)
        self._at_once = max(2 * DRAWS, min(256, 256 * 3072 // self.dimensions)) // DRAWS
        work = STEP_COST * SHARE * settings.batch_size
        self.every = settings.val_every or math.ceil(len(self.rows) * DRAWS / work)

    @torch.no_grad()
    def partial(self, network: Network, rank: int = 0, size: int = 1) -> Tensor:
        """Return one rank's validation sums, float64 [3, bins + 2] on the CPU.

        network: in eval mode. rank, size: number of this rank, and number of ranks.
        Rows: count, sum, sum of squares.
        Columns: ε error per dimension in each bin of λ; weighted loss; bits per dimension (meaningless for latents).
        """
        settings, to_bits = self.settings, bits_per_dimension(1.0, self.dimensions)
        noise, posterior = (Stream(settings.seed, name) for name in ("val-noise", "val-posterior"))
        how = self.weighting, self.schedule, self.prediction
        turns, losses, fixed = -(-len(self.rows) // (size * self._at_once)), list[Tensor](), list[Tensor]()
        places = (np.arange(turns)[:, None] * size + rank) * self._at_once + np.arange(self._at_once)
        # Positions beyond the last image repeat the last image and are dropped below: all ranks of a sharded network must call
        # the network equally often, with equally many inputs.
        for some in places.clip(max=len(self.rows) - 1):
            rows, eta, labels = self.rows[some], None, None
            stored, nats = torch.from_numpy(self.dataset.batch(rows)), torch.zeros(len(rows), dtype=torch.float64)
            if self._scaling is None:  # the terms of the bound that don't depend on the network
                nats += prior(stored.double() / 127.5 - 1, settings.logsnr_min)
                nats += reconstruction(settings.logsnr_max)[stored.long()].flatten(1).sum(1)
            else:
                eta = posterior.normal(rows.tolist(), (stored.shape[1] // 2, *stored.shape[2:]))
            fixed.append(nats * to_bits)
            x = network_input(stored, eta, self._scaling, self.device).repeat_interleave(DRAWS, 0)
            if self.conditional:
                labels = sent(torch.from_numpy(self.dataset.labels[rows]), self.device).repeat_interleave(DRAWS)
            draws = (rows[:, None] * DRAWS + np.arange(DRAWS)).ravel().tolist()
            eps = noise.normal(draws, (*x.shape[2:], x.shape[1]), pin=self.device.type == "cuda")
            eps = sent(eps, self.device).permute(0, 3, 1, 2)
            with Precision(settings.precision, self.device).autocast():
                level = self.schedule.logsnr(self._t[some]).flatten()
                losses.append(torch.stack(denoising_losses(network, x, eps, labels, level, *how)[:2]))
        real = torch.from_numpy(places.ravel() < len(self.rows))
        loss, error = torch.cat(losses, 1).double().cpu().view(2, -1, DRAWS)[:, real]  # the only wait for the device
        logsnr = self.schedule.logsnr(self._t[places.ravel()[real]])
        bins = BinSums(settings.logsnr_min, settings.logsnr_max)
        bins.add(logsnr.flatten(), error.flatten())
        diffusion = 0.5 * self.dimensions * (error / self.schedule.density(logsnr)).mean(1)
        values = torch.stack([loss.mean(1), torch.cat(fixed)[real] + diffusion * to_bits])
        return torch.cat([bins.values, torch.stack([torch.ones_like(values), values, values.square()]).sum(2)], 1)

    def finish(self, sums: Tensor) -> dict[str, float]:
        """Return the validation's numbers for metrics.jsonl. Raises NonFiniteError.

        sums: results of `partial`, added over all ranks.
        Returns: val_loss in nats per dimension; val_bpd in bits per dimension, for pixels only; *_se: standard error over images.
        """
        if not sums.isfinite().all():
            raise NonFiniteError(f"{self.dataset.path}: the validation loss is not finite; lower --lr, or try --precision fp32")
        count, total, squares = sums[:, -2:]
        mean = total / count[0]
        se = ((squares / count[0] - mean.square()).clamp(min=0) / (count[0] - 1)).sqrt()
        values: dict[str, float] = {"val_images": int(count[0])}
        for column, name in enumerate(["val_loss"] if self._scaling else ["val_loss", "val_bpd"]):
            values |= {name: float(mean[column]), f"{name}_se": float(se[column])}
        return values

    def header_for(self, log: Path) -> str:
        """Return a header line for validation.jsonl; '' if the log's last header is equal."""
        header = losslog.header(
            self.edges,
            dimensions=self.dimensions,
            weighting=self.settings.weighting,
            schedule=SCHEDULE,
            prediction=self.settings.prediction,
            dataset=str(self.dataset.path),
            payload_sha256=self.dataset.attributes.payload_sha256,
            held_out=len(self.rows),
        )
        lines = read_text(log).splitlines() if log.exists() else []
        headers = [parse_json(line, log) for line in [*lines, header] if line.startswith('{"format"')]
        for each in headers:
            each.pop("dataset", None)  # the dataset may have moved
        return "" if headers[-2:-1] == headers[-1:] else header


# --- targets of --log-to, which also get numbers and previews ---

LINES = ".jsonl"
SAMPLES = "samples"  # key of a preview (the path of a PNG file) among the values of a step
Target = Callable[[int, Mapping[str, Any]], object]  # (step, values) → anything


def write_line(file: str, step: int, values: Mapping[str, Any]) -> None:
    """Append the values to a JSONL file."""
    if SAMPLES not in values:
        with open(file, "a") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")


def open_tensorboard(run: Path, step: int) -> Target:
    """Return a target that writes TensorBoard events into RUN/tensorboard, and hides events after `step`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)  # hides later steps in old files

    def write(step: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if key == SAMPLES:
                writer.add_image(key, np.atleast_3d(np.asarray(Image.open(value))), step, dataformats="HWC")
            elif value is not None:
                group, _, rest = key.partition("_")
                writer.add_scalar(f"{group}/{rest}" if group in ("val", "eval") else f"train/{key}", value, step)
        writer.flush()

    return write


def _shown(values: Mapping[str, Any], picture: Callable[[str], Any]) -> dict[str, Any]:
    return {key: picture(str(value)) if key == SAMPLES else value for key, value in values.items() if value is not None}


def open_wandb(run: Path, step: int) -> Target:
    """Return a target that logs to Weights & Biases, under the run's id. step: not used."""
    import wandb

    config = read_config(run)
    for key, value in {"project": "elbo", "name": run.resolve().name, "dir": run, "console": "off"}.items():
        os.environ.setdefault(f"WANDB_{key.upper()}", str(value))  # the user's environment variables come first
    begun = wandb.init(id=config.run_id, resume="allow", config=config.json(), allow_val_change=True)
    begun.define_metric("*", step_metric="step")  # W&B's counter can't go back when a run resumes at an earlier step
    return lambda step, values: begun.log({"step": step, **_shown(values, wandb.Image)})


def open_trackio(run: Path, step: int) -> Target:
    """Return a target that logs to trackio. step: not used."""
    import trackio

    config = read_config(run)
    # trackio continues the logs of an equal name, so the name contains the run id.
    name, project = f"{run.resolve().name}-{str(config.run_id)[:8]}", os.environ.get("TRACKIO_PROJECT", "elbo")
    begun = trackio.init(project=project, name=name, config=config.json(), resume="allow")
    return lambda step, values: begun.log(_shown(values, trackio.Image), step=step)


PACKAGES = {"tensorboard": open_tensorboard, "wandb": open_wandb, "trackio": open_trackio}


def check_targets(words: Iterable[str], run: Path) -> None:
    """Check the words of --log-to. Raises UsageError."""
    for word in words:
        if word.endswith(LINES):
            check_outputs([(Path(word), ["numbers by step"])], [run], overwrite=True)
        elif word not in PACKAGES:
            raise UsageError(f"--log-to {word}: expected {', '.join(PACKAGES)} or the path of a {LINES} file")
        elif find_spec(word) is None:
            raise UsageError(f"--log-to {word}: not installed; get it with pip install 'elbocli[{word}]'")


class LogTargets:
    """Writer to all targets of --log-to; a target that fails is dropped.

    words: names in PACKAGES, or paths of JSONL files. step: last step done before the start.
    """

    def __init__(self, words: Iterable[str], run: Path, step: int):
        self._targets = dict[str, Target]()
        for word in words:
            with self._dropping(word):
                self._targets[word] = PACKAGES[word](run, step) if word in PACKAGES else partial(write_line, word)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for word, target in list(self._targets.items()):
            with self._dropping(word):
                target(step, values)

    def finish(self) -> None:
        """Wait until trackio has sent all values; wandb does so at the end of the process."""
        if "trackio" in self._targets:
            with self._dropping("trackio"):
                import trackio

                trackio.finish()

    @contextmanager
    def _dropping(self, word: str) -> Iterator[None]:
        try:
            with redirect_stdout(sys.stderr):  # standard output is for the run's path
                yield
        except Exception as error:  # the packages raise errors of any type
            log.warning("--log-to %s: %s; this target gets no more values until the run is resumed", word, error)
            self._targets.pop(word, None)

"""Check elbo on a CUDA card and measure its speed: `make gpu`. The steps that tell most come first.

OUT is a JSON report that is written after each step, so that a budget or a crash loses only the step under way.
"""

import argparse
import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import device_runs as on
import made_data
import numpy as np
import torch

from elbocli.files.dataset import Dataset
from elbocli.runs.settings import Resolved
from elbocli.runtime import PRECISIONS
from elbocli.training.state import TrainState
from elbocli.training.step import update
from elbocli.version import __version__

TIMED_S = 4.0  # seconds for which a speed is measured
COMMAND_S = 240  # seconds after which a command that says nothing is given up
LOSSES = 1e-3  # largest relative difference of the first losses from the CPU's
BITS = 1e-3  # largest relative difference of bits per dimension
LEVELS = 1.0  # largest mean difference of drawn pixels, in levels
BRIEF: dict[str, Any] = {"log_every": 10, "preview_every": 0, "warmup_steps": 5}


@dataclass(frozen=True)
class Row:
    """One result. ok: None for a measurement, which can't fail."""

    name: str
    value: float | str
    unit: str = ""
    ok: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Session:
    """Where to measure. small: on a CPU, everything is tried on tiny networks. until: end of the budget, time.monotonic()."""

    device: str
    folder: Path
    until: float

    @property
    def small(self) -> bool:
        return self.device == "cpu"

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


Step = Callable[[Session], Iterator[Row]]
STEPS: dict[str, Step] = {}


def gpu_step(function: Step) -> Step:
    """Register a step under its function's name."""
    STEPS[function.__name__.replace("_", " ")] = function
    return function


def released() -> None:
    """Free the memory of the previous measurement."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()


# Agreement with the CPU


@gpu_step
def agreement(session: Session) -> Iterator[Row]:
    """Compare losses, samples and a bound in float32 with the CPU's."""
    digits = made_data.packed_digits(session.folder)
    noise = made_data.packed(session.folder, 32, 3, count=64)
    steps = 3 if session.small else 20
    for preset, data, batch in (("digits", digits, 32), ("digits-uvit", digits, 32), ("small32", noise, 8)):
        options = {**BRIEF, "preset": preset, "batch_size": batch, "precision": "fp32", "optimizer": "adamw"}
        losses = [np.array(on.losses(data, device, steps, **options)) for device in ("cpu", session.device)]
        difference = float(np.abs(losses[1] / losses[0] - 1).max())
        yield Row(f"{preset}: {steps} losses, largest difference", difference, "relative", difference < LOSSES)
        if session.small:
            break
    run = session.folder / "agreement"
    on.trained(digits, run, "cpu", preset="digits", batch_size=32, steps=2 * steps, precision="fp32", **BRIEF)
    for sampler in ("ddim", "ddpm"):
        images = [
            on.samples(run, run / f"{sampler}-{device}-{number}.npy", device, sampler=sampler, n=8, steps=8, batch_size=4)
            for number, device in enumerate(("cpu", session.device))
        ]
        difference = float(np.abs(images[0].astype(int) - images[1].astype(int)).mean())
        yield Row(f"{sampler}: mean difference of pixels", difference, "levels", difference < LEVELS)
    bits = [on.bits(run, device, images=8) for device in ("cpu", session.device)]
    difference = abs(bits[1] / bits[0] - 1)
    yield Row("bits per dimension, difference", difference, "relative", difference < BITS)


@gpu_step
def half_precision(session: Session) -> Iterator[Row]:
    """Train in each precision, compiled and not, until the loss has fallen."""
    digits = made_data.packed_digits(session.folder)
    for precision in PRECISIONS:
        if precision == "auto":
            continue
        for compile in (False, True) if session.cuda else (False,):
            released()
            name = f"{precision}{', compiled' if compile else ''}"
            options = {**BRIEF, "steps": 40, "batch_size": 16, "preset": "digits", "log_every": 5, "network": {"channels": 8}}
            losses = on.trained(digits, session.folder / name, session.device, precision=precision, compile=compile, **options)
            yield Row(f"{name}: last loss / first loss", losses[-1] / losses[0], "ratio", losses[-1] < 0.8 * losses[0])


# The commands, end to end


def elbo(session: Session, *words: object) -> list[str]:
    return [sys.executable, "-m", "elbocli", *map(str, words)]


@gpu_step
def end_to_end(session: Session) -> Iterator[Row]:
    """Run commands: a training that is interrupted and continued, samples, scores, a bound."""
    made_data.packed_digits(session.folder)
    run = session.folder / "run"
    device = ("--device", session.device)
    words = ("train", "digits.h5", "-o", "run", "--preset", "digits", "--save-every", 10**6, "--log-every", 5, *device)
    line = elbo(session, *words, "--steps", 10**6)
    process = subprocess.Popen(line, cwd=session.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = run / "metrics.jsonl"
    end = time.monotonic() + COMMAND_S
    while time.monotonic() < end and process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=COMMAND_S)[1].strip().splitlines()
    yield Row("train, SIGTERM: exit", str(process.returncode), "", process.returncode == 143, said[-1][:160] if said else "")
    saved = json.loads((run / "status.json").read_text())["step"]
    steps = saved + (60 if session.small else 1000)
    for name, arguments in (
        ("train, continued", (*words, "--steps", steps)),
        ("sample", ("sample", "run", "-n", 32, "--steps", 8, "-o", "drawn.npy", *device)),
        ("eval", ("eval", "drawn.npy", "--ref", "digits.h5", "--extractor", "elbo-tiny", *device)),
        ("bound", ("bound", "run", "-n", 32, "--draws", 4, *device)),
    ):
        done = subprocess.run(
            elbo(session, *arguments), cwd=session.folder, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        yield Row(f"{name}: exit", str(done.returncode), "", done.returncode == 0, "".join(done.stderr.splitlines()[-1:])[:160])
    logged = [json.loads(text) for text in log.read_text().splitlines()]
    seen = [entry["step"] for entry in logged]
    yield Row("logged steps, each once", float(len(seen)), "lines", seen == sorted(set(seen)))
    yield Row("last loss / first loss", logged[-1]["loss"] / logged[0]["loss"], "ratio", logged[-1]["loss"] < logged[0]["loss"])


# Waits, memory, speed


@gpu_step
def host_waits(session: Session) -> Iterator[Row]:
    """Fail where the host waits for the card within a training step."""
    digits = made_data.packed_digits(session.folder)
    for precision in ("fp32", "bf16"):
        options = {"preset": "digits", "batch_size": 8, "micro_batch": 4, "precision": precision}
        settings = on.resolved(digits, session.device, **options)
        with on.arithmetic(precision, session.device):
            step = partial(update, TrainState(settings, digits))
            step()
            step()
            try:
                with on.no_waits(session.device):
                    step()
                yield Row(f"{precision}: training step", "no wait" if session.cuda else "not watched on a CPU", "", True)
            except RuntimeError as error:
                frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "elbocli" in frame.filename]
                place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside of elbo"
                yield Row(f"{precision}: training step", "waits", "", False, f"{place}: {str(error).splitlines()[0][:120]}")


@gpu_step
def little_memory(session: Session) -> Iterator[Row]:
    """Train with a large batch in little memory: the micro-batch that elbo plans must fit."""
    batch = 2048 if session.cuda else 8
    noise = made_data.packed(session.folder, 64, 3, count=batch)
    with on.little_memory(session.device), on.arithmetic("bf16", session.device):
        settings = on.resolved(noise, session.device, preset="small64", batch_size=batch, precision="bf16")
        state = TrainState(settings, noise)
        parts = [len(part) for part in state.batches.parts]
        yield Row(f"images at a time, of {batch}", float(max(parts)), "images", not session.cuda or len(parts) > 1)
        update(state)
        loss = state.interval()[1]
        yield Row("loss of a step", loss, "", math.isfinite(loss))


@dataclass(frozen=True)
class Case:
    """A preset's network, and images to measure it with. most: images at a time. changes: of the network, to fit a card."""

    preset: str
    size: int
    batch: int
    most: int
    changes: dict[str, Any]
    tiny: dict[str, Any]
    latents: bool = False


TINY = {"channels": 16, "levels": (1, 2), "blocks": 1}
CASES = (
    Case("imagenet64", 64, 256, 64, {}, TINY),
    Case("latents256-dit", 32, 256, 64, {}, {"width": 32, "depth": 2, "heads": 2}, latents=True),
    Case("imagenet256", 256, 64, 16, {"depth": 8}, {**TINY, "depth": 2, "heads": 2, "embedding": 32}),
    Case("cifar", 32, 512, 512, {}, TINY),
)


def opened(case: Case, session: Session, precision: str, compile: bool) -> tuple[Dataset, Resolved]:
    """Return a case's dataset of noise, and settings."""
    if session.small:
        case = replace(case, size=8 if case.latents else 16, batch=8, most=4, changes=case.tiny)
    pack = made_data.packed_latents if case.latents else partial(made_data.packed, channels=3)
    data = pack(session.folder, size=case.size, count=max(64, 2 * case.batch), classes=1000)
    options = {"preset": case.preset, "batch_size": case.batch, "micro_batch": min(case.most, case.batch)}
    return data, on.resolved(data, session.device, network=case.changes, precision=precision, compile=compile, **options)


def seconds(step: Callable[[], None], times: int, session: Session) -> float:
    """Return the seconds that a step takes `times` times."""
    if session.cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        step()
    if session.cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def rate(step: Callable[[], None], images: int, session: Session) -> float:
    """Return images per second, after two steps to warm up."""
    seconds(step, 2, session)
    times = 1 if session.small else max(1, min(100, int(TIMED_S / seconds(step, 1, session))))
    return images * times / seconds(step, times, session)


@gpu_step
def training_speed(session: Session) -> Iterator[Row]:
    """Measure training steps and peak memory, beside a bare loop of the same network, precision and compilation."""
    for case in CASES:
        for precision, compile in (("bf16", True), ("bf16", False)) if session.cuda else (("fp32", False),):
            released()
            if session.cuda:
                torch.cuda.reset_peak_memory_stats()
            data, settings = opened(case, session, precision, compile)
            batch = settings.settings.batch_size
            name = f"{case.preset}, {precision}{', compiled' if compile else ''}"
            with on.arithmetic(precision, session.device):
                state = TrainState(settings, data)
                ours = rate(on.step_of(state), batch, session)
                memory = torch.cuda.max_memory_allocated() / 1e9 if session.cuda else 0.0
                del state
                released()
                device = torch.device(session.device)
                bare = on.Bare(data, settings.network, batch, device, precision, compile, settings.settings.micro_batch)
                theirs = rate(bare.step, batch, session)
                del bare
            yield Row(name, ours, "images/s", None, f"a bare loop: {theirs:.4g} images/s; peak memory {memory:.2f} GB")


@gpu_step
def sampling_speed(session: Session) -> Iterator[Row]:
    """Measure `elbo sample` on imagenet64, at 32 network evaluations for each image."""
    released()
    data, settings = opened(CASES[0], session, "bf16", False)
    run = on.untrained(data, session.folder / "imagenet64", settings)
    n = 128 if session.cuda else 4
    for precision in ("bf16", "fp32") if session.cuda else ("fp32",):
        begin = time.perf_counter()
        options = {"precision": precision, "n": n, "steps": 32 if session.cuda else 2, "batch_size": 32, "overwrite": True}
        on.samples(run, run / "samples.npy", session.device, **options)
        yield Row(f"{precision}, with the start", n / (time.perf_counter() - begin), "images/s")


# The report


def environment(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"elbo": __version__, "torch": torch.__version__, "device": name, "cuda": str(torch.version.cuda)}


def table(reports: list[dict[str, Any]]) -> str:
    """Return the results of reports as a Markdown table."""
    lines = ["| device | step | result | value | note |", "|---|---|---|---|---|"]
    for report in reports:
        for step, rows in report["steps"].items():
            for row in rows:
                value = row["value"] if isinstance(row["value"], str) else f"{row['value']:.4g}"
                mark = {True: "ok", False: "**failed**", None: ""}[row["ok"]]
                note = " ".join(row["note"].split()).replace("|", "/")
                lines.append(f"| {report['device']} | {step} | {row['name']} | {value} {row['unit']} {mark} | {note} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="STEP", help=f"some of: {', '.join(STEPS)}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no further step begins")
    parser.add_argument("--report", nargs="+", type=Path, help="print the table of these reports instead")
    args = parser.parse_args()
    if args.report:
        print(table([json.loads(path.read_text()) for path in args.report]))
        return
    if unknown := [name for name in args.only if name not in STEPS]:
        parser.error(f"no step is called {unknown[0]!r}; choose among {', '.join(STEPS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA card; try --device cpu")
    os.environ["ELBO_DEVICE"] = args.device
    report: dict[str, Any] = {**environment(args.device), "steps": {}}
    with TemporaryDirectory() as folder:
        session = Session(args.device, Path(folder), time.monotonic() + args.budget)
        for name, step in STEPS.items():
            if args.only and name not in args.only:
                continue
            if time.monotonic() > session.until:
                print(f"{name}: left out, because the budget is spent", file=sys.stderr)
                continue
            rows = []
            try:
                for row in step(session):
                    print(name, row.name, row.value, row.unit, row.note, {False: "FAILED"}.get(row.ok, ""), file=sys.stderr)
                    rows.append(asdict(row))
            except Exception as error:
                traceback.print_exc()
                rows.append(asdict(Row("failed", type(error).__name__, "", False, str(error).partition("\n")[0][:160])))
            report["steps"][name] = rows
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    failed = [row["name"] for rows in report["steps"].values() for row in rows if row["ok"] is False]
    print(table([report]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

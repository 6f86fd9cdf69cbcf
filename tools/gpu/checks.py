"""Checks on a card: commands end to end, tests marked cuda, host waits, agreement with the CPU, FSDP2, and running out of memory."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import device_runs as on
import made_data
import numpy as np
import torch
import torch.distributed as dist
from environment import has
from worker import Row, Session, Skipped

from elbocli.core.noise import Noise
from elbocli.core.pixels import to_levels
from elbocli.core.schedule import parse_schedule
from elbocli.networks import NetworkConfig
from elbocli.runs.open import open_run
from elbocli.runtime import PRECISIONS
from elbocli.runtime.device import CudaGraphs, Precision, choose_device
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.draw import SampleSettings, denoiser_of, draw_batch, prepared
from elbocli.sampling.guidance import THRESHOLDS, Guidance
from elbocli.sampling.samplers import parse_sampler
from elbocli.sampling.spacing import logsnr_grid
from elbocli.training.state import TrainState
from elbocli.training.step import update

ROOT = Path(__file__).resolve().parents[2]
FILE = "tests/train/test_cuda.py"
"""Its fixtures are its own: those that tests share need packages that a bare machine lacks."""
FEW = 60.0
"""Seconds after which a command that says nothing is given up."""


def cuda_tests(session: Session) -> Iterator[Row]:
    """Run each test in its own process, since one may leave CUDA unusable. On a CPU they are only counted: the suite runs them."""
    if not has("pytest"):
        raise Skipped("pytest is not installed")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    line = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q", "-m", "cuda"]

    def ran(*words: str) -> tuple[int, list[str]]:
        try:
            how: dict[str, Any] = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
            done = subprocess.run([*line, *words], timeout=min(FEW, session.left), check=False, **how)
        except subprocess.TimeoutExpired:
            return -1, ["did not end"]
        print(done.stdout, done.stderr)
        return done.returncode, done.stdout.strip().splitlines() or ["no output"]

    code, said = ran("--collect-only", FILE)
    names = [name for name in said if "::" in name]
    yield Row("tests", len(names), ok=code == 0 and bool(names))
    for name in [] if session.device == "cpu" else names:
        code, said = ran(name)
        yield Row(name.rpartition("::")[2], f"exit {code}", ok=code == 0, note="" if code == 0 else said[-1].strip("= ")[:200])


NARROW = {"channels": 32, "depth": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "U-Net": ("digits", {"preset": "digits", "schedule": "adaptive"}, {}),
    "U-ViT": ("digits", {"preset": "digits-uvit"}, {}),
    "U-ViT, one wavelet level": ("noise", {"preset": "small32-uvit"}, {**NARROW, "patching": "dwt-1"}),
    "U-ViT, two wavelet levels": ("noise", {"preset": "small32-uvit"}, {**NARROW, "patching": "dwt-2"}),
    "U-ViT, latents": ("latents", {"preset": "digits-uvit"}, {}),
}
"""Dataset, settings and changes of the network, by what the large presets are made of."""
SAMPLERS = ("ddpm", "ddim", "heun:s_churn=40", "heun:space=path", "dpmpp-2m", "dpmpp-2m-sde")
WARM = 2
STEPS = 2


def place_of(error: RuntimeError) -> str:
    """Return the line of elbo that an error comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "elbocli" in frame.filename]
    return f"{frames[-1].filename.rpartition('elbocli/')[2]}:{frames[-1].lineno}" if frames else "outside of elbo"


def watched(name: str, device: str, work: Callable[[], object], warm: int, times: int) -> Row:
    """Do some work a few times to warm up, then a few times without a wait."""
    try:
        for _ in range(warm):
            work()
        with on.no_waits(device):
            for _ in range(times):
                work()
    except RuntimeError as error:
        return Row(name, "waits or fails", ok=False, note=f"{place_of(error)}: {' '.join(str(error).split())[:120]}")
    return Row(name, "no wait" if device == "cuda" else "runs, unwatched on a CPU")


def opened(run: Path, device: str) -> tuple[NetworkConfig, Denoiser]:
    """A run as `elbo sample` draws from it, guided by itself without classes, and clipped."""

    where = choose_device(device)
    clip = THRESHOLDS.parse("dynamic:percentile=99")
    graphs = CudaGraphs() if where.type == "cuda" else None
    trained = open_run(run, where)
    return trained.network.config, prepared(denoiser_of(trained, Guidance(2.0), threshold=clip), False, False, graphs)


def walking(run: tuple[NetworkConfig, Denoiser], spec: str, precision: str, device: str) -> Callable[[], object]:
    """A walk of four steps, from noise to pixels."""
    (config, denoiser) = run
    where = choose_device(device)
    settings = SampleSettings(sampler=parse_sampler(spec))
    grid = logsnr_grid(parse_schedule("cosine", -10, 10), 4)
    labels = torch.arange(4, device=where) % config.num_classes
    how = Noise(0, config.shape, 0, where), Precision(precision, where), to_levels
    return lambda: draw_batch(denoiser.given(labels), range(4), grid, settings, *how)


def host_waits(session: Session) -> Iterator[Row]:
    """A row for each family and precision, in training_step and in sampling."""
    device = session.device
    data = {
        "digits": made_data.packed_digits(session.folder),
        "noise": made_data.packed(session.folder, 32, 3, count=64),
        "latents": made_data.packed_latents(session.folder, 8, count=64),
    }
    for family, (kind, options, network) in FAMILIES.items():
        first = family == "U-Net"
        for precision in PRECISIONS if first or not session.small else ("bf16",):
            how: dict[str, Any] = {**options, "batch_size": 4, "micro_batch": 2, "precision": precision}
            settings = on.resolved(data[kind], device, network=network, **how)
            with on.arithmetic(precision, device):
                step = partial(update, TrainState(settings, data[kind]))
                yield watched(f"{family}, {precision}, training_step", device, step, WARM, STEPS)
            run = opened(on.untrained(data[kind], session.folder / f"{family} {precision}", settings), device)
            # Samplers walk alike whatever the network: one family tries them all.
            for spec in SAMPLERS if first and not (session.small and precision != "fp32") else SAMPLERS[:1]:
                walk = walking(run, spec, precision, device)
                yield watched(f"{family}, {precision}, {spec}", device, walk, 1, 1)
    # In one part, so that CUDA graphs are replayed: the steps before are those in which they are made.
    settings = on.resolved(data["digits"], device, preset="digits", batch_size=8, compile=True, precision="bf16")
    with on.arithmetic("bf16", device):
        step = partial(update, TrainState(settings, data["digits"]))
        yield watched("U-Net, bf16, compiled, training_step", device, step, 2 * WARM, STEPS)


LOSSES = 1e-3
MUON = 1e-2
PIXELS = 0.5
BITS = 1e-4
"""Largest differences: of losses, relative, by AdamW and by Muon; of pixels, mean levels; of bits per dimension, relative.

Muon orthogonalises in bf16 on CUDA alone, which changed 20 losses of the preset digits by 1.3e-3 to 3e-3 with three seeds.
"""
BRIEF: dict[str, Any] = {"log_every": 10, "preview_every": 0, "warmup_steps": 5}


def agreement(session: Session) -> Iterator[Row]:
    """Yield the largest difference between CPU and device, in float32, for each preset."""
    digits = made_data.packed_digits(session.folder)
    noise = made_data.packed(session.folder, 32, 3, count=64)
    steps = 3 if session.small else 20
    cases = (("digits", digits, 32), ("digits-uvit", digits, 32), ("small32-uvit", noise, 8))
    losses = [(*case, "adamw", LOSSES) for case in (cases[:2] if session.small else cases)]
    for preset, data, batch, optimizer, limit in [*losses, (*cases[0], "muon", MUON)]:
        options = {**BRIEF, "preset": preset, "batch_size": batch, "precision": "fp32", "optimizer": optimizer}
        cpu, device = (np.array(on.losses(data, where, steps, **options)) for where in ("cpu", session.device))
        apart = float(np.abs(device / cpu - 1).max())
        yield Row(f"{preset}, {optimizer}: {steps} losses, largest difference", apart, "relative", ok=apart < limit)
    for preset, data, batch in cases[:1] if session.small else (cases[0], cases[2]):
        run = session.folder / f"agree-{preset}"
        on.trained(data, run, "cpu", preset=preset, batch_size=batch, steps=2 * steps, precision="fp32", **BRIEF)
        yield from drawn_alike(session, run, preset)


def drawn_alike(session: Session, run: Path, preset: str) -> Iterator[Row]:
    """Images of a run and its bound."""
    for sampler in ("ddim", "ddpm"):
        images = [
            on.samples(run, run / f"{sampler}-{index}.npy", where, sampler=sampler, n=8, steps=8, batch_size=4)
            for index, where in enumerate(("cpu", session.device))
        ]
        apart = np.abs(images[0].astype(int) - images[1].astype(int))
        yield Row(
            f"{preset}: {sampler}, mean difference of pixels", float(apart.mean()), "levels", ok=bool(apart.mean() < PIXELS)
        )
    bits = [on.bits(run, where, images=8) for where in ("cpu", session.device)]
    apart = abs(bits[1] / bits[0] - 1)
    yield Row(f"{preset}: bits per dimension, difference", apart, "relative", ok=apart < BITS, note=f"{bits[0]:.5f} on the CPU")


LIMIT = {"fp32": 1e-4, "bf16": 0.05}
"""Largest differences of gradients, relative: bf16's weights are rounded before they are gathered."""


def one_card_fsdp(session: Session) -> Iterator[Row]:
    """Gradients of sharded networks against the same whole, twice over, and what a collective does."""
    digits = made_data.packed_digits(session.folder)
    noise = made_data.packed(session.folder, 32, 3, count=64)
    for preset, data in (("digits", digits), ("small32-uvit", noise)):
        config = on.resolved(data, session.device, preset=preset).network
        for precision, limit in LIMIT.items():
            sharded, whole = on.sharded_and_whole(config, session.device, precision)
            if len(sharded) != len(whole):
                yield Row(f"{preset}, {precision}: gradients", f"{len(sharded)} of {len(whole)}", ok=False)
                continue
            apart = max(float((one - other).norm() / other.norm()) for one, other in zip(sharded, whole) if other.any())
            name = f"{preset}, {precision}: {len(whole)} gradients, largest difference"
            yield Row(name, apart, "relative", ok=apart < limit)
    with on.alone_in_a_group(session.device) as world:
        value = torch.ones(3, device=world.device)
        dist.all_reduce(value)
        yield Row("backend", dist.get_backend(), ok=bool((value == 1).all()))


def out_of_memory(session: Session) -> Iterator[Row]:
    """Report what the search finds, and that steps of so many images then run."""
    cuda = session.device == "cuda"
    batch = 2048 if cuda else 8
    noise = made_data.packed(session.folder, 64, 3, count=batch)
    for precision in ("fp32", "bf16"):
        with on.little_memory(session.device), on.arithmetic(precision, session.device):
            settings = on.resolved(noise, session.device, preset="small64", batch_size=batch, precision=precision)
            state = TrainState(settings, noise)
            parts = [len(part) for part in state.batches.parts]
            searched = len(parts) > 1 if cuda else len(parts) == 1
            yield Row(f"{precision}: images at a time, of {batch}", max(parts), "images", ok=searched, note=f"{len(parts)} parts")
            for _ in range(3):
                update(state)
            loss = state.interval()[1]
            yield Row(f"{precision}: loss after 3 steps of so many", loss, ok=math.isfinite(loss))
            if cuda:
                used = torch.cuda.max_memory_reserved()
                yield Row(f"{precision}: memory reserved, of {on.LIMIT / 1e9:.2f} GB", used / 1e9, "GB", ok=used <= on.LIMIT)
                torch.cuda.reset_peak_memory_stats()
            del state


def command(session: Session, *words: object) -> list[str]:
    """A command line of elbo."""
    return [os.environ.get("PYTHON", sys.executable), "-m", "elbocli", *map(str, words)]


def ended(session: Session, *words: object) -> subprocess.CompletedProcess[str]:
    """A command that has ended."""
    line = command(session, *words)
    return subprocess.run(line, cwd=session.folder, capture_output=True, text=True, timeout=4 * FEW, check=False)


def interrupted(session: Session, line: list[str], log: Path) -> tuple[int, str]:
    """(exit code, stderr) of a command that gets SIGTERM when its log has a line."""
    process = subprocess.Popen(line, cwd=session.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 2 * FEW
        while time.monotonic() < until and process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=FEW)
    finally:
        process.kill()
    return process.returncode, said


def end_to_end(session: Session) -> Iterator[Row]:
    """Each command's end, and what it left."""
    made_data.packed_digits(session.folder)
    run = session.folder / "run"
    device = ("--device", session.device)
    words = ("train", "digits.h5", "-o", "run", "--preset", "digits", "--save-every", 10**6, "--log-every", 5, *device)
    # It must not be over before it is interrupted: that start has steps without end, which a run may change.
    code, said = interrupted(session, command(session, *words, "--steps", 10**6), run / "metrics.jsonl")
    yield Row("train, SIGTERM", f"exit {code}", ok=code == 143, note=said.strip().splitlines()[-1][:160] if said.strip() else "")
    saved = json.loads((run / "status.json").read_text())["step"]
    yield Row("saved at", saved, "steps", ok=saved > 0)
    steps = saved + (60 if session.small else 1000)
    done = ended(session, *words, "--steps", steps)
    status = json.loads((run / "status.json").read_text())
    whole = done.returncode == 0 and (status["state"], status["step"]) == ("done", steps)
    yield Row("train, gone on with", f"exit {done.returncode}", ok=whole and "going on after step" in done.stderr)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [line["step"] for line in logged]
    yield Row("steps in the log, each once", f"{len(seen)} lines", ok=seen == sorted(set(seen)) and len(seen) > 1)
    yield Row(
        "loss, first and last", f"{logged[0]['loss']:.3f}, {logged[-1]['loss']:.3f}", ok=logged[-1]["loss"] < logged[0]["loss"]
    )
    done = ended(session, "sample", "run", "-n", 32, "--steps", 8, "-o", "drawn.npy", *device)
    fine = done.returncode == 0 and np.load(session.folder / "drawn.npy").shape == (32, 8, 8, 1)
    yield Row("sample", f"exit {done.returncode}", ok=fine, note=done.stderr[-200:].strip() if not fine else "")
    lacking = [package for module, package in (("scipy", "scipy"), ("torch_fidelity", "torch-fidelity")) if not has(module)]
    if lacking:
        yield Row("eval", "skipped", note=f"{' and '.join(lacking)} not installed")
        return
    done = ended(session, "eval", "drawn.npy", "--ref", "digits.h5", "--extractor", "elbo-tiny", *device)
    yield Row("eval", f"exit {done.returncode}", ok=done.returncode == 0 and "frechet_distance" in done.stdout)

"""Compare images of elbo's defaults with those of a diffusers loop, after equal training times on the same cores.

    python tools/bench/equal_time.py DATA.h5 --test TEST.h5 --minutes 5 --seeds 3 --classifier classifier.pt2 -o out.json

Both learn from DATA.h5, one after the other, and the first to go alternates from seed to seed. Time is wall time of the training
process, with its start-up. elbo trains by its defaults: two short runs tell how many --steps fit into the time, and a training
that misses it is repeated. The loop gets as many seconds as elbo's last training took. It has batch size, clipping, average of
the weights and precision of elbo's preset, and otherwise UNet2DModel, diffusers' cosine schedule, v prediction and AdamW with a
cosine decay. Both draw the same number of images in 25 steps of DPM-Solver++, elbo's default, with classes in equal shares, and
`elbo eval` compares the images with TEST.h5 in the classifier's features. With --tune, the loop first trains each of two networks
at each of three learning rates on another seed, and goes on with the least distance to TEST.h5, which favours the loop. The ratio
of the distances, elbo's over the loop's, has a 95 % interval by Student's t of its logarithms over seeds. The same command continues
an interrupted comparison.
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import elbocli
from elbocli.main import share_cores

CHANNELS = {16: (1, 2), 40: (1, 2, 4), math.inf: (1, 2, 2, 4)}
"""Largest image size → channels of the loop's levels, relative to its first: those of the U-Nets in elbo's presets."""
WARM_UP = 0.05
"""Share of the loop's time over which its learning rate rises."""
RESERVE = 0.98
"""Share of the time that elbo's --steps are planned to fill."""
# trainings, until the time of one differs from the limit by less than this share
TRIES = 3
AMISS = 0.1
SIDES = ("elbo", "loop")
LAYERS = 2
LR = 1e-3
TUNING_SEED = 1000
CANDIDATES = [(layers, lr) for layers in (1, 2) for lr in (3e-4, 1e-3, 3e-3)]
"""Pairs that --tune tries: layers of a block, learning rate. Each network has about as many parameters as elbo's."""


def usual(data: elbocli.Dataset) -> Any:
    """Return elbo's default settings and network for a dataset."""
    from elbocli.runs.settings import resolve

    return resolve({}, data)


# The loop: run in a process of its own


def narrowest(sample_size: int, channels: int, classes: int, parameters: int, layers: int, width: int = 0) -> Any:
    """Return the narrowest UNet2DModel, in steps of 8 channels, that has at least as many parameters as elbo's network.

    parameters: of elbo's network. layers: of a block. width: channels of the first level; 0: as above.
    """
    from diffusers import UNet2DModel

    relative = next(levels for largest, levels in CHANNELS.items() if sample_size <= largest)
    for first in [width] if width else range(8, 4096, 8):
        network: Any = UNet2DModel(
            sample_size=sample_size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=layers,
            block_out_channels=[first * each for each in relative],
            down_block_types=["DownBlock2D"] * (len(relative) - 1) + ["AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (len(relative) - 1),
            norm_num_groups=8,
            num_class_embeds=classes or None,
        )
        if width or network.num_parameters() >= parameters:
            return network
    raise ValueError(f"no UNet2DModel has {parameters:,} parameters")


def batches(rows: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield rows of batches without end: a new random order each epoch, whose last rows are dropped."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(rows)
        for start in range(0, rows - size + 1, size):
            yield np.sort(order[start : start + size])


def loop(options: argparse.Namespace) -> dict[str, Any]:
    """Train until options.until, a time since the epoch; write images to options.out, uint8 [N,H,W,C]. Returns facts."""
    import torch
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

    from elbocli.core.averages import parse_average
    from elbocli.networks import build, count_parameters
    from elbocli.runtime.device import Precision, choose_device

    data = elbocli.open_dataset(options.data)
    elbo = usual(data)
    settings = elbo.settings
    device = choose_device(elbo.settings.device)
    precision = Precision(settings.precision, device)
    average = parse_average(settings.ema[0])
    torch.manual_seed(options.seed)
    count, height, _, channels = data.shape
    classes = elbo.network.num_classes
    parameters = count_parameters(build(elbo.network))
    network = narrowest(height, channels, classes, parameters, options.layers, options.width).to(device)
    weights = list(network.parameters())
    averaged = [weight.detach().clone() for weight in network.parameters()]
    optimizer = torch.optim.AdamW(
        weights, options.lr, betas=(0.9, settings.beta2), eps=settings.adam_eps, weight_decay=settings.weight_decay
    )
    noise: Any = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    begin = time.time()
    batch = min(options.batch or settings.batch_size, count)
    steps = 0
    longest = 0.0
    losses = list[float]()
    with precision.applied(benchmark=True):
        for rows in batches(count, batch, options.seed):
            now = time.time()
            if now + longest > options.until and steps:
                break
            done = (now - begin) / max(options.until - begin, 1e-9)
            decay = 0.5 + 0.5 * math.cos(math.pi * min(done, 1))
            optimizer.param_groups[0]["lr"] = options.lr * decay * min(1, max(done, 1e-3) / WARM_UP)
            clean = torch.from_numpy(data.read(rows)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            if settings.flip:
                clean = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, clean.flip(3), clean)
            labels = torch.from_numpy(data.labels[rows]).long().to(device) if classes else None
            t = torch.randint(1000, (batch,), device=device)
            eps = torch.randn_like(clean)
            with precision.autocast():
                v = network(noise.add_noise(clean, eps, t), t, class_labels=labels).sample
            loss = (v.float() - noise.get_velocity(clean, eps, t)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, settings.grad_clip or math.inf)
            optimizer.step()
            steps += 1
            beta = average.beta(steps, steps * batch, batch)
            torch._foreach_lerp_(averaged, [weight.detach() for weight in weights], 1 - beta)
            losses.append(loss.item())
            longest = max(time.time() - now, longest if steps > 2 else 0)
    seconds = time.time() - options.until + options.time

    for weight, mean in zip(weights, averaged):
        weight.data.copy_(mean)
    network.eval()
    sampler = DPMSolverMultistepScheduler.from_config(noise.config, timestep_spacing="trailing")
    drawn = []
    with torch.inference_mode():
        for start in range(0, options.images, 64):
            index = torch.arange(start, min(start + 64, options.images))
            labels = (index % classes).to(device) if classes else None
            z = torch.randn(len(index), channels, height, height).to(device)
            sampler.set_timesteps(options.sampling_steps)  # once per batch, because the scheduler counts its steps
            for t in sampler.timesteps:
                z = sampler.step(network(z, t, class_labels=labels).sample, t, z).prev_sample
            drawn.append(((z + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    np.save(options.out, np.concatenate(drawn))
    parameters = sum(weight.numel() for weight in weights)
    late = fmean(losses[-max(1, len(losses) // 10) :])
    return {"seconds": seconds, "steps": steps, "images": steps * batch, "parameters": parameters, "loss": late}


# The comparison


class Comparison:
    """A comparison in a folder. options: of the command line."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options = options
        self.folder = folder
        self.limit = 60 * options.minutes
        self.startup = 0.0
        self.step = 0.0
        self.spent = self.limit
        self.data = elbocli.open_dataset(options.data)
        self.labelled = bool(options.classifier and usual(self.data).network.num_classes)

    def elbo(self, *words: Any, feed: Path | None = None) -> dict[str, Any]:
        """Run a command of elbo's. feed: file for its standard input. Returns the JSON object that it prints, or {}."""
        with open(feed or os.devnull, "rb") as given:
            line = [sys.executable, "-m", "elbocli", *map(str, words)]
            said = subprocess.run(line, stdin=given, stdout=subprocess.PIPE, check=True).stdout
        return json.loads(said) if said.startswith(b"{") else {}

    def train(self, run: Path, seed: int, *words: Any) -> tuple[float, int]:
        """Train elbo's network. Returns wall seconds, and the number of steps done."""
        shutil.rmtree(run, ignore_errors=True)  # of an interrupted comparison: time counts from the first step
        begin = time.time()
        self.elbo("train", "-q", self.options.data, "-o", run, "--seed", seed, *words, *self.options.elbo.split())
        return time.time() - begin, elbocli.open_run(run).step

    def plan(self) -> int:
        """Return the steps of elbo's training that fill the time, by start-up and seconds per step."""
        if not self.step:
            self.startup, _ = self.train(self.folder / "first", 0, "--steps", 1)
            trial = max(self.limit / 10, 2)
            seconds, steps = self.train(
                self.folder / "trial", 0, "--steps", 10**6, "--time-limit", f"{trial + self.startup:.1f}s"
            )
            self.step = max(seconds - self.startup, 1e-3) / max(steps - 1, 1)
        return max(1, int((RESERVE * self.limit - self.startup) / self.step))

    def elbo_side(self, seed: int) -> tuple[Path, dict[str, Any]]:
        """Train elbo's network and draw from it. Returns the images, and facts."""
        run = self.folder / f"run-{seed}"
        images = self.folder / f"elbo-{seed}.npy"
        for _ in range(TRIES):
            steps = self.plan()
            self.spent = seconds = self.train(run, seed, "--steps", steps)[0]
            self.step = max(seconds - self.startup, 1e-3) / steps  # of a whole training, with its previews and checkpoints
            if abs(seconds / self.limit - 1) < AMISS:
                break
        drawn = ("-n", self.options.images, "--sampler", "dpmpp-2m", "--steps", self.options.sampling_steps)
        self.elbo("sample", "-q", "--overwrite", run, *drawn, "--seed", seed, "-o", images)
        bound = self.elbo("bound", "-q", run, self.options.test, "-n", self.options.bound_images)
        trained = elbocli.open_run(run)
        parameters = sum(weight.numel() for weight in trained.network.parameters())
        facts = {"seconds": seconds, "steps": steps, "images": trained.about["images_trained"], "parameters": parameters}
        return images, {**facts, "bpd": bound["bpd"], "bpd_se": bound["bpd_se"]}

    def loop_side(self, seed: int) -> tuple[Path, dict[str, Any]]:
        """Run the loop in a process, for as long as elbo's last training took. Returns its images, and facts."""
        images = self.folder / f"loop-{seed}.npy"
        given = self.options
        line = [sys.executable, __file__, given.data, "--loop-until", time.time() + self.spent, "--loop-seconds", self.spent]
        line += ["--seed", seed, "-o", images, "--images", given.images, "--sampling-steps", given.sampling_steps]
        line += ["--layers", given.layers, "--width", given.width, "--batch", given.batch, "--lr", given.lr]
        said = subprocess.run([*map(str, line)], stdout=subprocess.PIPE, check=True).stdout
        return images, json.loads(said)

    def score(self, images: Path, labelled: bool) -> dict[str, float]:
        """Return the scores of images, uint8 [N,H,W,C], against the test images. labelled: image i is of class i mod K."""
        words: tuple[Any, ...] = ("-", "--ref", self.options.test, "--extractor", self.options.classifier or "elbo-tiny")
        words += ("--metrics", "fid,accuracy", "--classes", "balanced") if labelled else ("--metrics", "fid")
        scores = self.elbo("eval", "-q", *words, feed=images)
        distance = next(value for name, value in scores.items() if name.startswith("frechet_distance["))
        return {"distance": distance, **({"accuracy": scores["accuracy"]} if labelled else {})}

    def fresh(self) -> float:
        """Return the distance of as many training images, evenly spaced."""
        images = self.folder / "fresh.npy"
        count = len(self.data)
        np.save(images, self.data.read(np.linspace(0, count - 1, min(self.options.images, count)).astype(int)))
        return self.score(images, labelled=False)["distance"]

    def tune(self) -> list[dict[str, Any]]:
        """Train the loop with each of CANDIDATES. Returns the layers, lr and distance of each, the least distance first."""
        rows = []
        for layers, lr in CANDIDATES:
            self.options.layers = layers
            self.options.lr = lr
            images, _ = self.loop_side(TUNING_SEED)
            rows.append({"layers": layers, "lr": lr, "distance": self.score(images, labelled=False)["distance"]})
            print(f"equal_time: tuning: {rows[-1]}", file=sys.stderr, flush=True)
        return sorted(rows, key=lambda row: row["distance"])

    def seed(self, seed: int) -> dict[str, Any]:
        """Return the facts and scores of both sides for a seed."""
        row: dict[str, Any] = {"seed": seed}
        for side in SIDES if seed % 2 == 0 else reversed(SIDES):
            images, facts = getattr(self, f"{side}_side")(seed)
            row[side] = {**facts, **self.score(images, self.labelled), "images_per_second": facts["images"] / facts["seconds"]}
            print(f"equal_time: seed {seed}, {side}: {row[side]}", file=sys.stderr, flush=True)
        return row


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Return the geometric mean of ours/theirs over pairs, with its 95 % interval by Student's t; None with a single pair."""
    from scipy.stats import t

    logs = np.log(np.asarray(ours) / np.asarray(theirs))
    result: dict[str, float | None] = {"ratio": float(np.exp(logs.mean())), "low": None, "high": None}
    if len(logs) > 1:
        half = float(t.ppf(0.975, len(logs) - 1)) * logs.std(ddof=1) / math.sqrt(len(logs))
        result |= {"low": float(np.exp(logs.mean() - half)), "high": float(np.exp(logs.mean() + half))}
    return result


def table(result: dict[str, Any]) -> str:
    """Return a comparison as Markdown."""
    names = ("seconds", "steps", "parameters", "images_per_second", "distance", "accuracy", "bpd")
    titles = ("seconds", "steps", "parameters", "images/s", "distance", "accuracy", "bits/dim")
    digits = ("{:.1f}", "{:,}", "{:,}", "{:.1f}", "{:.2f}", "{:.3f}", "{:.3f}")
    lines = [["seed", "side", *titles], ["---"] * (2 + len(titles))]
    for row in result["seeds"]:
        for side in SIDES:
            values = [form.format(row[side][name]) if name in row[side] else "" for name, form in zip(names, digits)]
            lines.append([str(row["seed"]), side, *values])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    found = result["distance_ratio"]
    interval = "" if found["low"] is None else f", 95 % interval {found['low']:.3f} to {found['high']:.3f}"
    fresh = f"distance of training images: {result['fresh']:.2f}"
    return f"{text}\n\nratio of distances, elbo / loop: {found['ratio']:.3f}{interval}; {fresh}"


def summary(settings: dict[str, Any], fresh: float, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the object for the JSON file. seeds: results of `Comparison.seed`."""
    sides = [[row[side]["distance"] for row in seeds] for side in SIDES]
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return {"settings": settings, "machine": machine, "fresh": fresh, "seeds": seeds, "distance_ratio": ratio(*sides)}


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA.h5", help="dataset to learn from, made by elbo prep")
    parser.add_argument("--test", type=Path, metavar="TEST.h5", help="held-out images, for distances and bits/dim")
    parser.add_argument("--minutes", type=float, default=5.0, help="time of each training (default: 5)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument(
        "--classifier", metavar="FILE.pt2", help="features of distances, and accuracy; examples/digits/make_classifier.py"
    )
    parser.add_argument("--images", type=int, default=2000, help="images that each side draws (default: 2000)")
    parser.add_argument("--sampling-steps", type=int, default=25, help="steps of DPM-Solver++ for each side (default: 25)")
    parser.add_argument("--bound-images", type=int, default=1000, help="held-out images for bits/dim (default: 1000)")
    parser.add_argument(
        "--elbo", default="", metavar="OPTIONS", help="options of elbo train beside its defaults, to try a change"
    )
    parser.add_argument(
        "--tune", action="store_true", help="first train the loop with each candidate on another seed, and keep the best"
    )
    parser.add_argument("--batch", type=int, default=0, help="images in a batch of the loop (default: as in elbo's preset)")
    parser.add_argument("--lr", type=float, default=LR, help=f"the loop's learning rate (default: {LR})")
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help=f"the loop's layers in a block (default: {LAYERS}, diffusers' own)"
    )
    parser.add_argument("--width", type=int, default=0, help="the loop's channels (default: the fewest with elbo's parameters)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep runs and images here (default: a temporary folder)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.json")
    parser.add_argument("--loop-until", dest="until", type=float, help=argparse.SUPPRESS)  # for the process of the loop
    parser.add_argument("--loop-seconds", dest="time", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.until is None and options.test is None:
        parser.error("--test TEST.h5 is missing")
    if options.tune and (options.lr, options.layers) != (LR, LAYERS):
        parser.error("--tune chooses --lr and --layers; leave them out")
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Compare, and print the table."""
    options = parsed(words)
    share_cores()
    if options.until is not None:
        print(json.dumps(loop(options)))
        return
    kept = ("minutes", "images", "sampling_steps", "bound_images", "elbo", "tune", "batch", "lr", "layers", "width")
    settings = {name: getattr(options, name) for name in kept}
    settings |= {name: str(getattr(options, name)) for name in ("data", "test", "classifier")}
    before = json.loads(options.out.read_text()) if options.out.exists() else {"settings": settings, "seeds": []}
    if before["settings"] != settings:
        sys.exit(f"equal_time: error: {options.out}: is of other settings, {before['settings']}; remove it, or choose another -o")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(options, folder)
        seeds = before["seeds"]
        fresh = before["fresh"] if seeds else comparison.fresh()
        tuning = before.get("tuning") or (comparison.tune() if options.tune else [])
        if tuning:
            options.layers = tuning[0]["layers"]
            options.lr = tuning[0]["lr"]
            options.out.write_text(json.dumps({**before, "tuning": tuning}, indent=1) + "\n")
        for seed in range(len(seeds), options.seeds):
            seeds.append(comparison.seed(seed))
            result = {**summary(settings, fresh, seeds), "tuning": tuning}
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()

"""Render the man pages from the commands: `python man/build.py` writes them, `--check` compares.

Every page comes from a click command: its docstring, its options, and the examples, exit statuses, variables
and files given here. elbo-formats.5 is written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from pathlib import Path
from pkgutil import resolve_name

import click

from elbocli.cli.commands import Command, Named, Option
from elbocli.core.samplers import SamplerTraits
from elbocli.main import elbo
from elbocli.version import __version__

HERE = Path(__file__).parent
DATE = "2026-11-24"

EXAMPLES = {
    "elbo": [
        (
            "Pack a folder of class folders, train, look at samples, score them.",
            "elbo prep imagenet/ out.h5\nelbo train --weighting sigmoid --bias 2\nelbo sample run -n 64 -o grid.png\n"
            "elbo sample run -n 50000 | elbo eval --ref out.h5",
        ),
        (
            "Fit a noise schedule to a run and train again on it.",
            "elbo adapt run > schedule.yaml\nelbo train --schedule schedule.yaml -o run2",
        ),
    ],
    "elbo prep": [
        ("Pack at 64 pixels; skip broken files and list them.", "elbo prep imagenet/ out.h5 --on-error skip"),
        (
            "ILSVRC as downloaded; the numbers of the ground-truth list are those of meta.mat beside it.",
            "elbo prep ILSVRC2012_img_train.tar train.h5\n"
            "elbo prep ILSVRC2012_img_val.tar val.h5 --labels devkit/data/ILSVRC2012_validation_ground_truth.txt",
        ),
        (
            "Kaggle's folders, with names for the classes.",
            "elbo prep CLS-LOC/train train.h5 --classes LOC_synset_mapping.txt\n"
            "elbo prep CLS-LOC/val val.h5 --labels LOC_val_solution.csv --classes LOC_synset_mapping.txt",
        ),
        ("Webdataset shards, a tenth of each class held out.", "elbo prep train-*.tar out.h5 --subset train 0.1"),
        ("Another dataset, smaller.", "elbo prep big.h5 small.h5 --size 32"),
        ("Small grey images.", "elbo prep digits/ digits.h5 --size 8 --channels 1"),
    ],
    "elbo merge": [
        (
            "Pack in four jobs, then make one dataset of the shards.",
            "for k in 1 2 3 4; do elbo prep imagenet/ part$k.h5 --shard $k/4; done\nelbo merge out.h5 part?.h5",
        ),
    ],
    "elbo train": [
        ("The paper's sigmoid weighting on the only dataset here.", "elbo train --weighting sigmoid --bias 2"),
        (
            "EDM's weighting made monotone, sampled by a schedule that adapts.",
            "elbo train out.h5 -o run-am --weighting edm --monotone --schedule adaptive",
        ),
        ("See what would run.", "elbo train out.h5 --preset imagenet64 --dry-run"),
        (
            "What would the paper's largest network need on one device? Needs no dataset.",
            "elbo train --preset imagenet512 --dry-run --device cuda --micro-batch 8",
        ),
        (
            "Hold 1000 images out, and score checkpoints while training goes on, beside the device that it fills.",
            "elbo train out.h5 --val-split 1000 --on-checkpoint \\\n"
            '  \'export ELBO_DEVICE=cpu; elbo sample -q "$ELBO_CHECKPOINT" -n 5000 | \\\n'
            '   elbo eval -q --ref ref.npz > "$ELBO_RUN/fid-$ELBO_STEP.json"\'',
        ),
        (
            "Three averages of the weights: by decay, by EDM's half-life in images, by EDM2's power function.",
            "elbo train out.h5 --ema 0.9999 --ema halflife:images=50e6,ramp=.05 --ema power:std=.1",
        ),
        (
            "Go on with a run; then train another with its settings and its network.",
            "elbo train -o run\nelbo train other.h5 --config run/config.yaml -o run2",
        ),
        (
            "Settings from a file and from the environment.",
            "ELBO_TRAIN_LR=1e-4 elbo train out.h5 --config settings.yaml",
        ),
    ],
    "elbo adapt": [
        ("For the weighting of the run itself.", "elbo adapt run > schedule.yaml"),
        (
            "For another weighting, from two logs, with a picture.",
            "cat a/losslog.jsonl b/losslog.jsonl | elbo adapt - --weighting elbo --plot fit.svg -o schedule.yaml",
        ),
        (
            "How much would each schedule's estimate of the loss vary?",
            "elbo adapt run --report | jq '.schedules'",
        ),
        (
            "The noise levels at which training can still gain most.",
            "elbo optimum --like run -o least.json\nelbo adapt run --criterion excess --optimum least.json -o next.yaml",
        ),
        (
            "For data that nothing was trained on yet.",
            "elbo optimum out.h5 -o optimum.json\nelbo adapt --data-only optimum.json -o first.yaml",
        ),
    ],
    "elbo grid": [
        (
            "The levels for Heun's method at 31 evaluations, and images drawn on them.",
            "elbo grid run --sampler heun --steps 16 -o grid.yaml\n"
            "elbo sample run --sampler heun --steps 16 --schedule grid.yaml -o grid.png",
        ),
        (
            "How much does each step do wrong, and how much on other grids?",
            "elbo grid run --sampler ddim --steps 12 --report | jq '.errors, .grids'",
        ),
        ("Equal steps of entropy, for any sampler.", "elbo grid run --kind rescaled > rescaled.yaml"),
        (
            "For guided samples; worse is a run that was trained for less time.",
            "elbo grid run --sampler dpmpp-2m --steps 12 --guidance 2 --guide worse -o g.yaml\n"
            "elbo sample run --sampler dpmpp-2m --steps 12 --guidance 2 --guide worse \\\n"
            "    --schedule g.yaml -o grid.png",
        ),
    ],
    "elbo ema": [
        (
            "Keep snapshots while training; afterwards try an average that was never kept.",
            "elbo train out.h5 --snapshot-every 5000\nelbo ema run --std .15 -o ema-0.15.safetensors\n"
            "elbo sample run --weights ema-0.15.safetensors -n 50000 | elbo eval --ref out.h5",
        ),
        (
            "Which average is best?",
            "for std in .05 .07 .10 .13 .16; do\n  elbo ema run --std $std -o a.safetensors --overwrite | jq .residual\n"
            "  elbo sample run --weights a.safetensors -n 10000 | elbo eval --ref out.h5 | jq .fid\ndone",
        ),
    ],
    "elbo bound": [
        (
            "Bits per dimension of held-out images, with its profile over logsnr.",
            "elbo bound run test.h5 --curve curve.tsv --plot curve.svg",
        ),
        (
            "Is the loss really a sum of bounds? For three weightings.",
            "elbo bound run --check --weighting sigmoid:bias=2 --weighting edm --weighting fm-ot",
        ),
        (
            "Three estimates of one number, and those of every image: how tight is the bound?",
            "elbo bound run test.h5 --estimator variational --estimator information \\\n"
            "    --estimator ode:steps=32 -n 100 --per-image each.tsv > run/likelihood.json\n"
            "sort -n -k3 each.tsv | head\nelbo report run -o report.html",
        ),
        ("The run as a classifier.", "elbo bound run test.h5 --classify"),
        (
            "Fit a schedule to a finished run, not to its history.",
            "elbo bound run -q --log errors.jsonl > /dev/null && elbo adapt errors.jsonl > schedule.yaml",
        ),
    ],
    "elbo sample": [
        ("A grid of 64 images.", "elbo sample run -n 64 -o grid.png"),
        (
            "EDM's sampler, guided at middling noise only.",
            "elbo sample run --sampler heun --steps 32 --guidance 2 --guidance-interval -2 4 -o samples.npz",
        ),
        (
            "The settings of its figures for ImageNet at 64 pixels.",
            "elbo sample run -n 50000 --sampler heun:edm-imagenet64 -o samples.h5",
        ),
        (
            "Good images in 20 evaluations, each estimate kept within the range of pixels.",
            "elbo sample run --sampler dpmpp-2m --steps 20 --clip dynamic:percentile=99 -o grid.png",
        ),
        (
            "Away from what an earlier checkpoint would have drawn.",
            "elbo sample run --guidance 2 --guide run/checkpoints/step-00010000 -o grid.png",
        ),
        ("Straight into eval.", "elbo sample run -n 50000 | elbo eval --ref out.h5"),
        (
            "On eight GPUs; the same again goes on where it was.",
            "torchrun --standalone --nproc-per-node 8 --no-python elbo sample run -n 50000 -o samples.h5",
        ),
        ("An earlier checkpoint.", "elbo sample run/checkpoints/step-00010000 -o grid.png"),
        (
            "An earlier checkpoint, and another of its averages.",
            "elbo sample run/checkpoints/step-00010000 --weights power:std=.1 -o samples.npz",
        ),
    ],
    "elbo eval": [
        ("FID and Inception score of a stream.", "elbo sample run -n 50000 | elbo eval --ref out.h5 | jq .fid"),
        (
            "Keep a reference's statistics, and use them.",
            "elbo eval out.h5 --metrics fid --save-stats ref.npz\nelbo eval samples.npz --ref ref.npz",
        ),
        (
            "Everything, from features that are extracted once; with a page to publish.",
            "elbo eval out.h5 --metrics fid --save-features ref.safetensors\n"
            "elbo eval samples.h5 --ref ref.safetensors --metrics fid,is,kid,prc --fid-infinity --card samples.md",
        ),
        (
            "Three seeds: mean and standard deviation.",
            "for seed in 0 1 2; do elbo sample run -n 50000 --seed $seed -o s$seed.h5; done\n"
            "elbo eval s0.h5 s1.h5 s2.h5 --ref out.h5 --card scores.md",
        ),
        (
            "Does the model copy the images that it was trained on? Look at the closest, too.",
            "elbo eval samples.h5 --ref out.h5 --held-out test.h5 --metrics copying --copying-cells 1 --neighbours close.png",
        ),
        (
            "As ADM's evaluator does it, with one of its reference batches.",
            "elbo eval samples.npz --ref VIRTUAL_imagenet64_labeled.npz --protocol adm",
        ),
        ("On eight GPUs.", "torchrun --nproc-per-node 8 -m elbocli eval samples.h5 --ref out.h5"),
        (
            "Your own network, exported by torch.export.",
            "elbo eval samples.h5 --ref out.h5 --extractor classifier.pt2 --metrics fid,is,accuracy",
        ),
    ],
    "elbo compare": [
        (
            "Is Heun's method better here, or is that chance? Three seeds of each.",
            "for seed in 0 1 2; do\n  elbo sample run -n 50000 --seed $seed -o a$seed.h5\n"
            "  elbo sample run -n 50000 --seed $seed --sampler heun -o b$seed.h5\ndone\n"
            "elbo eval a?.h5 --ref out.h5 > a.json\nelbo eval b?.h5 --ref out.h5 > b.json\n"
            "elbo compare a.json b.json --table",
        ),
        (
            "From one seed of each, by pairs of images.",
            "elbo sample run -n 50000 -o a.h5\nelbo sample run -n 50000 --sampler heun -o b.h5\n"
            "for name in a b; do\n"
            "  elbo eval $name.h5 --ref ref.npz --metrics fid --save-features $name.safetensors\ndone\n"
            "elbo compare a.safetensors b.safetensors --ref ref.npz | jq -r '.others[].scores[].says'",
        ),
    ],
    "elbo optimum": [
        (
            "Which part of the loss can training still gain? Does the network copy?",
            "elbo optimum --like run -o optimum.json\nelbo bound run test.h5 --optimum optimum.json | jq .excess\n"
            "elbo report run --scores optimum.json -o report.html",
        ),
        (
            "A schedule for data that nothing was trained on yet.",
            "elbo optimum out.h5 -o optimum.json\n"
            "elbo adapt --data-only optimum.json --weighting sigmoid:bias=2 -o schedule.yaml",
        ),
        (
            "Draw the noise levels at which most is to be gained.",
            "elbo optimum --like run -o optimum.json\n"
            "elbo adapt run --criterion excess --optimum optimum.json > schedule.yaml",
        ),
    ],
    "elbo report": [
        ("One page to hand to a colleague.", "elbo report run -o report.html"),
        (
            "With samples and scores.",
            "elbo sample run -n 1000 -o samples.h5\n"
            "elbo eval samples.h5 --ref out.h5 > fid.json\nelbo bound run test.h5 > bound.json\n"
            "elbo report run --samples samples.h5 --scores fid.json --scores bound.json -o report.html",
        ),
        ("Two runs side by side: in what do they differ, and which is better?", "elbo report run run2 -o report.html"),
        ("What does the run say of its weighting?", "elbo report run --json | jq .objective.verdict"),
    ],
    "elbo weights": [
        ("Is a weighting an ELBO?", "elbo weights check edm"),
        ("A picture for a talk.", "elbo weights plot sigmoid:bias=2 edm edm:monotone --schedule cosine -o weights.svg"),
    ],
    "elbo weights list": [("Everything with a name.", "elbo weights list schedules")],
    "elbo weights show": [
        (
            "Two weightings and a schedule as a table.",
            "elbo weights show sigmoid edm-monotonic --schedule cosine > table.tsv",
        )
    ],
    "elbo weights check": [
        ("The paper's test of EDM's weighting.", "elbo weights check edm --json"),
        ("Is a loss what it is taken for?", "elbo weights check eps-mse:sigmoid:bias=2@cosine --equals sigmoid:bias=2"),
        ("What a diffusers model was trained for.", "elbo weights check scheduler/scheduler_config.json"),
    ],
    "elbo weights plot": [
        ("On the terminal.", "elbo weights plot sigmoid edm iddpm"),
        ("The objectives of the literature on one sheet.", "elbo weights plot -o weights.pdf"),
    ],
    "elbo completion": [
        (
            "Complete command lines in this bash, and in every one to come.",
            'eval "$(elbo completion bash)"\necho \'eval "$(elbo completion bash)"\' >> ~/.bashrc',
        ),
    ],
    "elbo info": [
        ("What is this file?", "elbo info out.h5\nelbo info run --json"),
        ("Is it still what was written?", "elbo info out.h5 --verify"),
    ],
}
EXIT = [
    ("0", "Done."),
    ("1", "The input or the run failed; the message names the file, what was found and what to do."),
    ("2", "Wrong usage or configuration."),
    ("4", "The loss was not finite (train)."),
    (
        "130, 138, 143",
        "Interrupted by SIGINT, SIGUSR1 or SIGTERM; train, prep, merge and sample save their work first.",
    ),
    ("141", "The reader of the output went away."),
]
ENVIRONMENT = [
    ("ELBO_DATA", "The dataset that train uses when none is named."),
    (
        "ELBO_DEVICE",
        "The device of every command that is told none: cpu, cuda, cuda:1. Without it, cuda if there is one.",
    ),
    ("ELBO_COMMAND_OPTION", "Default of any option: ELBO_TRAIN_LR, ELBO_SAMPLE_STEPS. The command line comes first."),
    (
        "PYTORCH_ALLOC_CONF",
        "Settings of the allocator of device memory, as torch reads them. Commands set expandable_segments:True where it is not set.",
    ),
]
FILES = {
    "elbo train": [
        ("run/config.yaml", "All settings, resolved."),
        ("run/metrics.jsonl", "Loss, learning rate, speed by step."),
        ("run/losslog.jsonl", "The unweighted error by noise level, for adapt."),
        ("run/validation.jsonl", "The same of images held out."),
        ("run/status.json", "How the run stands."),
        ("run/checkpoints/", "Weights, averages and optimizer, each with a digest."),
        ("run/snapshots/", "Power averages at several steps, for ema."),
        ("run/previews/", "Sheets of samples."),
        ("run/tensorboard/, run/wandb/", "Events for TensorBoard, and what W&B keeps."),
    ],
    "elbo prep": [
        ("OUT.h5.partial", "Unfinished work; the same command goes on with it."),
        ("OUT.skipped.jsonl", "What was skipped, and why."),
    ],
    "elbo merge": [("OUT.h5.partial", "Unfinished work; the same command goes on with it.")],
    "elbo sample": [("OUT.partial", "Images that are safe; the same command goes on with them.")],
}


def filled(text: str) -> str:
    """Running text in lines of at most 78 characters."""
    return escape("\n".join(textwrap.wrap(" ".join(text.split()), 72, break_long_words=False, break_on_hyphens=False)))


def escape(text: str) -> str:
    """Plain text for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.splitlines())


def tagged(rows: list[tuple[str, str]]) -> list[str]:
    """Paragraphs with a bold tag."""
    lines = []
    for tag, text in rows:
        lines += [".TP", f".B {escape(tag)}", filled(text)]
    return lines


def paragraphs(text: str) -> list[str]:
    """A docstring: paragraphs filled, those marked \\b as they stand."""
    lines: list[str] = []
    for index, block in enumerate(text.split("\n\n")):
        if block.startswith("\b"):
            lines += [".PP", ".nf", *(escape(line) for line in block.splitlines()[1:]), ".fi"]
        else:
            lines += ([".PP"] if index else []) + [filled(block)]
    return lines


def options(command: click.Command) -> list[str]:
    """Each option and what it does, from its declaration alone, so that pages don't change with click's version."""
    context = click.Context(command, help_option_names=["-h", "--help"])
    grouped = isinstance(command, Command) and bool(command.groups)
    sections = command.sections(context) if isinstance(command, Command) else {"": command.get_params(context)}
    lines = [".SH OPTIONS"]
    for heading, found in sections.items():
        rows = [described(option) for option in found if isinstance(option, click.Option)]
        lines += ([f".SS {escape(heading)}"] if grouped else []) + tagged(rows)
    return lines


def described(option: click.Option) -> tuple[str, str]:
    """An option's names and value, and all that there is to say of it."""
    if option.name == "help":
        return ", ".join(option.opts), "Show a summary and exit."
    value = "" if option.is_flag else " " + value_name(option)
    names = ", ".join(option.opts) + (" / " + ", ".join(option.secondary_opts) if option.secondary_opts else "")
    default = f"  [default: {option.default}]" if option.show_default and option.default is not None else ""
    known = f"Names: {listed(option.type)}." if isinstance(option.type, Named) else ""
    more = option.more if isinstance(option, Option) else ""
    return names + value, "  ".join(filter(None, [(option.help or "") + default, more, known]))


def listed(type_: Named) -> str:
    """All names that an option may begin with, with parameters and their defaults, and the presets of samplers."""
    table, words = resolve_name(type_.table), []
    for name in type_.known:
        declared = table[name] if isinstance(table, dict) and name in table else None
        words.append(declared.spec if declared else name)
        if declared and isinstance(declared.traits, SamplerTraits):
            words[-1] += f" (on {declared.traits.grid})"
            words += [f"{name}:{preset} ({how.steps} steps)" for preset, how in declared.traits.presets.items()]
    return ", ".join(words)


def value_name(option: click.Option) -> str:
    """What stands for an option's value."""
    if option.metavar:
        return option.metavar
    return "|".join(option.type.choices) if isinstance(option.type, click.Choice) else option.type.name.upper()


def page(path: str, command: click.Command) -> str:
    """One page in man(7)."""
    name = path.replace(" ", "-")
    help_text = inspect.cleandoc(command.help or "").strip()
    summary = re.split(r"(?<=[.:])\s", " ".join(help_text.split()), maxsplit=1)[0].rstrip(".:")
    arguments = [
        argument.metavar or argument.name.upper() for argument in command.params if isinstance(argument, click.Argument)
    ]
    usage = " ".join(["[OPTIONS]", *arguments, *(["COMMAND [ARGS]..."] if isinstance(command, click.Group) else [])])
    lines = [
        f'.TH {name.upper()} 1 {DATE} "elbo {__version__}" "elbo manual"',
        ".SH NAME",
        filled(f"{name} @ {summary}").replace("@", "\\-"),
        ".SH SYNOPSIS",
        f".B {escape(path)}",
        escape(usage),
        ".SH DESCRIPTION",
        *paragraphs(help_text),
    ]
    if isinstance(command, click.Group):
        lines += [
            ".SH COMMANDS",
            *tagged(
                [
                    (f"{path} {sub}", (child.help or "").strip().splitlines()[0])
                    for sub, child in children(command).items()
                ]
            ),
        ]
    lines += options(command)
    if path in EXAMPLES:
        lines.append(".SH EXAMPLES")
        for index, (text, code) in enumerate(EXAMPLES[path]):
            lines += ([".PP"] if index else []) + [filled(text), ".PP", ".RS 4", ".nf", escape(code), ".fi", ".RE"]
    lines += [".SH EXIT STATUS", *tagged(EXIT), ".SH ENVIRONMENT", *tagged(ENVIRONMENT)]
    if path in FILES:
        lines += [".SH FILES", *tagged(FILES[path])]
    others = [other.replace(" ", "-") for other in pages_of(elbo, "elbo") if other != path and other.count(" ") <= 1]
    lines += [".SH SEE ALSO", ",\n".join(f"{escape(other)}(1)" for other in others) + ",\nelbo\\-formats(5)"]
    return "\n".join(line for line in lines if line) + "\n"


def children(command: click.Command) -> dict[str, click.Command]:
    """The commands of a group, by name."""
    context = click.Context(command)
    names = command.list_commands(context) if isinstance(command, click.Group) else []
    found = {name: command.get_command(context, name) for name in names}  # type: ignore[attr-defined]
    return {name: child for name, child in found.items() if child is not None}


def pages_of(command: click.Command, path: str) -> dict[str, click.Command]:
    """Every command of the tree by its full name."""
    found = {path: command}
    for name, child in children(command).items():
        found |= pages_of(child, f"{path} {name}")
    return found


def render() -> dict[str, str]:
    """File name → text of every page."""
    return {f"{path.replace(' ', '-')}.1": page(path, command) for path, command in pages_of(elbo, "elbo").items()}


def main() -> int:
    """Write the pages, or with --check say which differ (exit 1)."""
    rendered = render()
    stale = [name for name, text in rendered.items() if not (HERE / name).exists() or (HERE / name).read_text() != text]
    stale += [path.name for path in HERE.glob("*.1") if path.name not in rendered]
    if "--check" in sys.argv:
        print(
            "\n".join(f"man/{name} is not what the commands say; run 'make man'" for name in stale),
            end="\n" if stale else "",
        )
        return 1 if stale else 0
    for path in HERE.glob("*.1"):
        path.unlink()
    for name, text in rendered.items():
        (HERE / name).write_text(text)
    print(f"{len(rendered)} pages, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

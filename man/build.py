"""Render the man pages from the commands: `python man/build.py` writes them, `--check` compares.

Every page comes from a click command: its docstring, its options, and the examples, exit statuses, variables
and files given here. tools/formats.py writes the list of records in elbo-formats.5.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from pathlib import Path
from pkgutil import resolve_name

import click

from elbocli.commands.shared.commands import Command, Named, Option, examples
from elbocli.main import elbo
from elbocli.sampling.samplers import Sampler
from elbocli.version import __version__

HERE = Path(__file__).parent
DATE = "2026-11-24"

EXAMPLES = examples()
EXIT = [
    ("0", "Done."),
    ("1", "The input or the run failed, and the message names the file, what was found and what to do; or a check says no."),
    ("2", "Wrong usage or configuration."),
    ("4", "The loss was not finite (train)."),
    (
        "129, 130, 138, 143",
        "Interrupted by SIGHUP, SIGINT, SIGUSR1 or SIGTERM; train, prep and sample save their work first.",
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
    "elbo sample": [("OUT.partial", "Images that are safe; the same command goes on with them.")],
}


def filled(text: str) -> str:
    """Running text in lines of at most 78 bytes."""
    return escape("\n".join(textwrap.wrap(" ".join(text.split()), 70, break_long_words=False, break_on_hyphens=False)))


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
    sections = command.sections(context) if isinstance(command, Command) else {"": command.get_params(context)}
    lines = [".SH OPTIONS"]
    for heading, found in sections.items():
        rows = [described(option) for option in found if isinstance(option, click.Option)]
        lines += ([f".SS {escape(heading)}"] if len(sections) > 1 else []) + tagged(rows)
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
    """All names that an option may begin with, with parameters and their defaults."""
    table = resolve_name(type_.table)
    words = []
    for name in type_.known:
        declared = table[name] if isinstance(table, dict) and name in table else None
        words.append(declared.spec if declared else name)
        if declared and isinstance(declared, Sampler):
            words[-1] += f" (on {declared.grid})"
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
    arguments = [argument.metavar or argument.name.upper() for argument in command.params if isinstance(argument, click.Argument)]
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
            *tagged([(f"{path} {sub}", (child.help or "").strip().splitlines()[0]) for sub, child in children(command).items()]),
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

"""`elbo`: the group of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from elbocli.cli.commands import COMPLETE, CONTEXT, Command, Group, NoCommand, option
from elbocli.cli.messages import tell, visible, visible_lines
from elbocli.cli.options import common
from elbocli.cli.types import imported
from elbocli.errors import ElboError
from elbocli.version import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "adapt": ("elbocli.adapt.command.adapt", "Fit a noise schedule to the loss logs of runs, for any weighting."),
    "bound": (
        "elbocli.bound.command.bound",
        "Measure the variational bound of RUN on DATA.h5, in nats and bits per dimension.",
    ),
    "compare": (
        "elbocli.compare.command.compare",
        "Say whether scores can be told apart: the difference of each to that of FIRST, with its interval.",
    ),
    "completion": ("elbocli.main.completion", "Print what makes SHELL complete command lines of elbo."),
    "ema": ("elbocli.ema.command.ema", "Make an average of RUN's weights after training."),
    "eval": ("elbocli.evaluate.command.evaluate", "Score SAMPLES against a reference; one JSON object."),
    "grid": (
        "elbocli.grid.command.grid",
        "Make the grid of noise levels on which a sampler draws from RUN with few steps.",
    ),
    "import": (
        "elbocli.importer.command.import_",
        "Make RUN of SOURCE, the checkpoint of another program, so that all commands work on it.",
    ),
    "info": ("elbocli.info.command.info", "Say what FILE is and how it was made, and show its images."),
    "merge": ("elbocli.merge.command.merge", "Make one dataset, OUT.h5, of several PARTs."),
    "optimum": (
        "elbocli.optimum.command.optimum",
        "Find the least error that any denoiser of DATA.h5 can have, at each noise level.",
    ),
    "prep": ("elbocli.prep.command.prep", "Pack images into one dataset, OUT.h5."),
    "presets": (
        "elbocli.presets.command.presets",
        "Look at presets: a network and training settings for a size of image.",
    ),
    "report": (
        "elbocli.report.command.report",
        "Show a run, or several side by side, on one page of HTML that needs no other file.",
    ),
    "sample": ("elbocli.sample.command.sample", "Draw images from RUN, or from one of its checkpoints."),
    "train": ("elbocli.train.command.train", "Train a denoiser on DATA.h5, under any weighting of the noise levels."),
    "weights": ("elbocli.weights.command.weights", "Look at weightings: how much each noise level counts."),
}
"""Name → the command's full name, and the first sentence of its help."""


class Commands(Group):
    """A group that imports a command when it is asked for: the help of one costs nothing of the others'."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return imported(COMMANDS[cmd_name][0]) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        words = [(name, about) for name, (_, about) in COMMANDS.items() if name.startswith(incomplete)]
        return [
            *(CompletionItem(name, help=about) for name, about in words),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


def _say_version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    """Say the version, with -v all else that matters, and end; or refuse -v without it."""
    verbose = ctx.params.pop("verbose", False)
    if ctx.resilient_parsing or not (asked or verbose):
        return
    if not asked:
        raise click.UsageError("-v before a command goes with --version; else it stands after it: elbo COMMAND -v", ctx)
    click.echo(f"elbo {__version__}")
    if verbose:
        from elbocli.cli.versions import facts

        for name, found in facts():
            click.echo(f"{name:<14}  {visible(found)}")
    ctx.exit()


@click.group(cls=Commands, context_settings=CONTEXT)
@option(
    "--version",
    is_flag=True,
    allow_from_autoenv=False,
    expose_value=False,
    callback=_say_version,
    help="Say the version; with -v all that a report of a bug needs.",
    more="That is Python, the system, how torch was built, devices, threads, memory, and the version of each package that "
    "elbo can use, beside the versions that will do.",
)
@option("-v", "--verbose", is_flag=True, is_eager=True, allow_from_autoenv=False, help="Say more, with --version.")
def elbo() -> None:
    """Diffusion objectives as weightings over noise levels: pack images, train, fit the schedule, sample, score.

    \b
    elbo prep imagenet/ out.h5
    elbo train --weighting sigmoid --bias 2
    elbo sample run -n 64 | elbo eval --ref out.h5
    elbo adapt run > schedule.yaml
    """


ALLOCATE = ("can't allocate memory", "std::bad_alloc")
LATER_S = 10.0
"""Time that ranks other than 0 wait after an error, so that rank 0 prints its own first: a launcher ends all when one ends."""
SIGNALLED = 128
"""Exit codes from here on say by which signal a command ended, as shells do."""
LESS = "do less at a time with a smaller --batch, in 'elbo train' a smaller --micro-batch or --activation-checkpointing"
SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@common
def completion(shell: str) -> None:
    """Print what makes SHELL complete command lines of elbo.

    SHELL is bash, zsh or fish. Completed are commands and options, names of weightings, schedules, predictions, presets
    and samplers, and runs.

    \b
    bash, in ~/.bashrc:               eval "$(elbo completion bash)"
    zsh, in ~/.zshrc after compinit:  eval "$(elbo completion zsh)"
    fish:                             elbo completion fish > ~/.config/fish/completions/elbo.fish
    """
    from click.shell_completion import get_completion_class

    root, kind = click.get_current_context().find_root(), get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root.command, {}, "elbo", COMPLETE).source())


def share_cores() -> None:
    """Let torch's threads sleep soon when they wait for each other, unless the user has said how long they spin.

    Spinning for the usual millisecond, two commands of a pipe on two cores slow each other down a hundredfold.
    Must come before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def extend_segments() -> None:
    """Let CUDA's allocator extend its segments, which leaves fewer gaps, unless the user has said how it allocates.

    Must come before torch is imported.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch before 2.9 reads the second alone
    chosen = next((os.environ[name] for name in names if name in os.environ), "expandable_segments:True")
    for name in names:
        os.environ.setdefault(name, chosen)


def fail(where: str, message: str, code: int, alone: bool = False) -> int:
    """Print on stderr what went wrong, or by which signal the command ended, which is no error; return the exit code.

    alone: no other process can say it, so ranks other than 0 print it too. Else they wait for rank 0.
    """
    if alone or not Command.silent:
        rank = f"rank {os.environ['RANK']}: " if Command.silent else ""
        tell(f"{where}: {'error: ' if code < SIGNALLED else ''}{rank}{message}")
    elif code < SIGNALLED:
        time.sleep(LATER_S)
    return code


def _invoke(args: list[str]) -> int:
    """Run a command line to its end, and flush what it prints; return the exit code."""
    try:
        if COMPLETE in os.environ:
            from click.shell_completion import shell_complete

            code: int = shell_complete(elbo, {}, "elbo", COMPLETE, os.environ[COMPLETE])
        else:
            with elbo.make_context("elbo", args, auto_envvar_prefix="ELBO") as context:
                elbo.invoke(context)
            code = 0
    except click.exceptions.Exit as end:
        code = end.exit_code
    sys.stdout.flush()
    return code


def run(args: list[str] | None = None) -> int:
    """Run a command line; return the exit code."""
    try:
        return _invoke(sys.argv[1:] if args is None else args)
    except NoCommand as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "elbo"
        return fail(path, f"{error.format_message()} (see '{path} --help')", 2)
    except click.ClickException as error:
        return fail("elbo", error.format_message(), 1)
    except ElboError as error:
        if Command.verbose:
            import traceback

            click.echo(visible_lines(traceback.format_exc()), err=True, nl=False)
        return fail(Command.path, str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return fail(Command.path, "interrupted", SIGNALLED + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more at its end
        return SIGNALLED + signal.SIGPIPE
    except OSError as error:
        where = "standard output" if error.filename is None else os.fsdecode(error.filename)
        if error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fail(Command.path, f"{where}: {error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        # As torch and numpy say it, which need not be imported here; anything else is our bug.
        named = type(error).__name__ in ("OutOfMemoryError", "_ArrayMemoryError", "MemoryError")
        if not named and not any(words in str(error) for words in ALLOCATE):
            raise
        what = " ".join(str(error).split())[:200] or "nothing more was said"
        return fail(Command.path, f"out of memory ({what}); {LESS}", 1, alone=True)


def main() -> None:
    """The console script."""
    if COMPLETE not in os.environ:
        share_cores()
        extend_segments()
        faulthandler.enable()  # says where a process ends by SIGBUS, when a file is cut short while its mapped rows are copied
    sys.exit(run())

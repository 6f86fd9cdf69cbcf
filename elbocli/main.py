"""`elbo`: the group of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from contextlib import suppress

import click
from click.shell_completion import shell_complete

from elbocli import __version__
from elbocli.adapt.command import adapt
from elbocli.bound.command import bound
from elbocli.cli.completion import completion
from elbocli.cli.options import COMPLETE, CONTEXT, Command
from elbocli.ema.command import ema
from elbocli.errors import ElboError
from elbocli.evaluate.command import evaluate
from elbocli.info.command import info
from elbocli.merge.command import merge
from elbocli.prep.command import prep
from elbocli.report.command import report
from elbocli.sample.command import sample
from elbocli.train.command import train
from elbocli.weights.command import weights


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="elbo", message="%(prog)s %(version)s")
def elbo() -> None:
    """Diffusion objectives as weightings over noise levels: pack images, train, fit the schedule, sample, score.

    \b
    elbo prep imagenet/ out.h5
    elbo train --weighting sigmoid --bias 2
    elbo sample run -n 64 | elbo eval --ref out.h5
    elbo adapt run > schedule.yaml
    """


for command in (
    prep,
    merge,
    train,
    adapt,
    ema,
    sample,
    evaluate,
    bound,
    report,
    weights,
    info,
    completion,
):
    elbo.add_command(command)


ALLOCATE = "can't allocate memory"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
LATER_S = 10.0
LESS = "do less at a time with a smaller --batch, in 'elbo train' a smaller --micro-batch or --activation-checkpointing"


def share_cores() -> None:
    """Let torch's threads sleep soon when they wait for each other, unless the user has said how long they spin.

    Spinning for the usual millisecond, two commands of a pipe on two cores slow each other down a hundredfold.
    Must come before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def fail(where: str, message: str, code: int, alone: bool = False) -> int:
    """Say what went wrong on stderr. alone: no other process can say it, so that silent ones do too, with their rank.

    A silent one ends after the first, which has the word: a launcher ends all others when one ends.
    """
    if alone or not Command.silent:
        rank = f"rank {os.environ['RANK']}: " if Command.silent else ""
        click.echo(f"{where}: error: {rank}{message}", err=True)
    elif code < 128:
        with suppress(KeyboardInterrupt):
            time.sleep(LATER_S)
    return code


def run(args: list[str] | None = None) -> int:
    """Run a command line; the exit code."""
    try:
        line = sys.argv[1:] if args is None else args
        with elbo.make_context("elbo", line, auto_envvar_prefix="ELBO") as context:
            elbo.invoke(context)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "elbo"
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message(), err=True)
            return 2
        return fail(path, f"{error.format_message()} (see '{path} --help')", 2)
    except click.ClickException as error:
        return fail("elbo", error.format_message(), 1)
    except ElboError as error:
        if Command.verbose:
            traceback.print_exc()
        return fail(Command.path, str(error), error.exit_code)
    except (MemoryError, RuntimeError) as error:
        # As torch and numpy say it, who need not be imported here; anything else is our bug.
        if type(error).__name__ not in ("OutOfMemoryError", "_ArrayMemoryError", "MemoryError") and ALLOCATE not in str(
            error
        ):
            raise
        what = " ".join(str(error).split())[:200] or "nothing more was said"
        return fail(Command.path, f"out of memory ({what}); {LESS}", 1, alone=True)
    except (click.Abort, KeyboardInterrupt):
        return fail(Command.path, "interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what waits there can't be written either
        return fail(Command.path, f"standard output: could not write: {error.strerror}", 1)


def main() -> None:
    """The console script."""
    if COMPLETE in os.environ:
        sys.exit(shell_complete(elbo, {}, "elbo", COMPLETE, os.environ[COMPLETE]))
    share_cores()
    code = run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)

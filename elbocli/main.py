"""The command `elbo`: run other commands, and turn errors into messages and exit codes."""

import faulthandler
import gc
import os
import signal
import sys
import time
from pkgutil import resolve_name
from typing import Any

import click

from elbocli.commands.shared.commands import ADDED, COMPLETE, CONTEXT, Command, Group, Option, plugin_option
from elbocli.errors import OUT_OF_MEMORY, DataError, ElboError, NotJoined, UsageError
from elbocli.runtime.text import tell
from elbocli.version import __version__

# Heading of the help → command → first sentence of the command's help.
GROUPS = {
    "Data": {
        "prep": "Pack images into one dataset, OUT.h5.",
        "info": "Describe any file of elbo's, and show its images.",
    },
    "Training": {
        "train": "Train a denoiser on DATA.h5, under any weighting.",
        "adapt": "Fit a noise schedule to loss logs, for any weighting.",
        "ema": "Make an average of RUN's weights after training.",
        "import": "Make RUN of another program's checkpoint.",
        "presets": "List networks and settings for sizes of images.",
    },
    "Sampling": {
        "sample": "Draw images from RUN, or from one of its checkpoints.",
        "grid": "Find the noise levels for sampling RUN in few steps.",
    },
    "Scores": {
        "eval": "Score SAMPLES against a reference: FID and others.",
        "compare": "Tell differences between scores from chance.",
        "bound": "Measure the variational bound, in bits per dimension.",
    },
    "Analysis": {
        "list": "List the names of a KIND: weightings, samplers and others.",
        "weights": "Show, check and plot weightings.",
        "report": "Show runs, loss logs, results and images on one page of HTML.",
    },
}
COMMANDS = {name: text for rows in GROUPS.values() for name, text in rows.items()}
ELSEWHERE = {
    "eval": "elbocli.commands.eval.evaluate",
    "import": "elbocli.commands.import_.import_",
    "list": "elbocli.commands.weights.list_",
}


class Commands(Group):
    """Click group that imports a command's module on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *ADDED]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            return resolve_name(ELSEWHERE.get(cmd_name, f"elbocli.commands.{cmd_name}.{cmd_name}"))
        if cmd_name not in ADDED and not ctx.resilient_parsing:
            from elbocli.core.registry import load_installed

            load_installed()
        return ADDED.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        added = {name: command.get_short_help_str(60) for name, command in ADDED.items()}
        for heading, rows in (GROUPS | ({"Plug-ins": added} if added else {})).items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:10}", text) for name, text in rows.items()])


@click.group(cls=Commands, context_settings=CONTEXT)
@plugin_option
@click.version_option(__version__, message="elbo %(version)s", help="Print the version.", cls=Option, allow_from_autoenv=False)
def elbo() -> None:
    """Diffusion objectives as weightings over noise levels: pack images, train, fit the schedule, sample, score."""


LATER_S = 10.0  # seconds that other ranks wait after an error: rank 0 prints before the launcher ends all ranks
SIGNALLED = 128  # exit code of a command that a signal ended: 128 + the signal's number, as in shells
LESS = "try a smaller --batch-size; in 'elbo train', a smaller --micro-batch, or --activation-checkpointing"


def _complete(instruction: str) -> int:
    from click.shell_completion import shell_complete

    return shell_complete(elbo, {}, "elbo", COMPLETE, instruction)


elbo.commands.update(dict.fromkeys(COMMANDS, elbo))  # click suggests these names for an unknown command


def share_cores() -> None:
    """Shorten OpenMP's busy-waiting, unless configured by the user. Call before importing torch."""
    # With torch's default, two commands of a pipe that share two cores slow each other down a hundredfold.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def extend_segments() -> None:
    """Enable expandable segments of CUDA's allocator, unless configured by the user. Call before importing torch."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch before 2.9 reads only the second name
    chosen = next((os.environ[name] for name in names if name in os.environ), "expandable_segments:True")
    for name in names:
        os.environ.setdefault(name, chosen)


def _fail(where: str, message: str, code: int, alone: bool) -> int:
    # alone: print on this rank, because other ranks may have no error; otherwise only rank 0 prints.
    if alone or not Command.silent:
        rank = f"rank {os.environ['RANK']}: " if Command.silent else ""
        tell(f"{where}: {'error: ' if code < SIGNALLED else ''}{rank}{message}")
    elif code < SIGNALLED:
        time.sleep(LATER_S)
    return code


def _invoke(args: list[str]) -> int:
    if sys.stdout is None:
        raise DataError("standard output is closed; redirect it to a file or to /dev/null")
    for word in args:
        if word != word.encode(errors="replace").decode():
            raise UsageError(f"{word}: is not UTF-8, and elbo's files hold only UTF-8; rename the file")
    try:
        if COMPLETE in os.environ:
            code = _complete(os.environ[COMPLETE])
        else:
            with elbo.make_context("elbo", args, auto_envvar_prefix="ELBO") as context:
                elbo.invoke(context)
            code = 0
    except click.exceptions.Exit as end:
        code = end.exit_code
    sys.stdout.flush()
    return code


def run(args: list[str]) -> int:
    """Run a command line, print its errors, and return the exit code."""
    try:
        return _invoke(args)
    except (Exception, KeyboardInterrupt) as error:
        where = Command.path
        code = getattr(error, "exit_code", 1)
        said = " ".join(str(error).split())[:200]
        no_memory = isinstance(error, MemoryError) or OUT_OF_MEMORY.search(repr(error)) is not None
        if isinstance(error, OSError) and error.filename is None:  # Python flushes stdout again at exit, which would fail again
            _silence(sys.stdout)
        match error:
            case click.ClickException():
                context = getattr(error, "ctx", None)
                where = context.command_path if context else where
                said = error.format_message() + (f" (see '{where} --help')" if code == 2 else "")
            case ElboError():
                said = error.for_command_line
                if Command.verbose:
                    import traceback

                    tell(traceback.format_exc().replace("\n", "\n  "))
            case BrokenPipeError():
                return SIGNALLED + signal.SIGPIPE
            case OSError():
                said = f"{error.filename or 'standard output'}: {error.strerror or error}"
            case KeyboardInterrupt() | click.Abort():
                said = "interrupted"
                code = SIGNALLED + signal.SIGINT
            case _ if no_memory:
                said = f"out of memory{said and f' ({said})'}; {LESS}"
            case _:
                raise
        return _fail(where, said, code, alone=no_memory or isinstance(error, NotJoined))


def _silence(stream: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main() -> None:
    """Entry point of the console script."""
    if COMPLETE not in os.environ:
        share_cores()
        extend_segments()
        faulthandler.enable()  # prints a traceback on SIGBUS, which a memory-mapped file causes if it is truncated meanwhile
    code = run(sys.argv[1:])
    try:
        sys.stderr.flush()
    except OSError:  # Python flushes stderr again at exit, and would exit with 120
        _silence(sys.stderr)
    gc.freeze()  # the garbage collector would traverse torch's objects at exit, which takes .2 s or more
    sys.exit(code)

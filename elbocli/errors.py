"""Exception classes, with the exit codes of the command line."""

import re

# errors of Python, torch, the CUDA driver, cuBLAS and cuDNN
OUT_OF_MEMORY = re.compile(
    "OutOfMemoryError|out of memory|can't allocate memory|std::bad_alloc|ALLOC_FAILED|unable to find an engine"
)


class Parameter(str):
    """Name of a parameter, as a part of an error's message; on the command line it is an option."""

    __slots__ = ()

    @property
    def option(self) -> str:
        return "--" + self.replace("_", "-")


class ElboError(Exception):
    """Base class of errors that the user can fix; the message names the path, the problem and the remedy.

    Arguments: parts of the message, texts and Parameters, which are joined without spaces.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "".join(map(str, self.args))

    @property
    def for_command_line(self) -> str:
        """The message with the options of its Parameters."""
        return "".join(part.option if isinstance(part, Parameter) else str(part) for part in self.args)


class UsageError(ElboError):
    """Invalid request: an unknown name, a value out of range, contradictory settings."""

    exit_code = 2


class FormatError(ElboError):
    """A file has the wrong format, or is damaged."""


class PluginError(UsageError):
    """A function or class that a plug-in declares is faulty. The message names its file and line."""


class DataError(ElboError):
    """Data are missing or unusable: an undecodable image, an empty folder, a truncated stream."""


class NonFiniteError(ElboError):
    """A loss, a gradient or another computed number is NaN or infinite."""

    exit_code = 4


class Interrupted(ElboError):
    """A signal ended the run, after the run's work was saved."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


class PeerLost(ElboError):
    """Another process of a run under torchrun has ended unexpectedly."""


class NotJoined(PeerLost):
    """This process of a run under torchrun could not connect to another one. Rank 0 may still wait, so any rank prints this error."""


class ReaderGone(ElboError):
    """The program that reads elbo's output from a pipe has closed the pipe."""

    exit_code = 141

    def __init__(self) -> None:
        super().__init__("the reader of the output has closed the pipe, so the command ends without writing the rest")

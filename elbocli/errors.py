"""The ways a run can fail, each with its exit code. Knows nothing of the command line."""


class ElboError(Exception):
    """Something the user can understand and act on: the message names what, where and the remedy."""

    exit_code = 1


class UsageError(ElboError):
    """The user asked for what can't be: an unknown name, a value out of range, settings that contradict."""

    exit_code = 2


class FormatError(ElboError):
    """A file is not what it should be."""


class DataError(ElboError):
    """The data can't be used: an image that doesn't decode, an empty folder, a stream cut short."""


class NonFiniteError(ElboError):
    """The loss or its gradient is NaN or infinite."""

    exit_code = 4


class Interrupted(ElboError):
    """A signal ended the run after it had saved its work."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


class PeerLost(ElboError):
    """Another process of a run under torchrun is gone."""


class ReaderGone(ElboError):
    """The reader of a run's output has ended; as a shell says it, by SIGPIPE."""

    exit_code = 141

    def __init__(self) -> None:
        super().__init__("nobody reads the output any more")

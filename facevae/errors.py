"""The errors that a user can cause, and the exit code of each kind."""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Argument:
    """An argument named in an error message, with its value unless that is empty.

    A message says `guidance=12`; the command line writes `--guidance 12` instead. Where the Python
    API has no argument of that name, `name` says what kind of value it is.
    """

    name: str
    value: object = ""

    def __str__(self) -> str:
        """The argument as Python code has it."""
        return f"`{self.name}`" if self.value == "" else f"{self.name}={self.value}"


class Stopped(Exception):
    """Work ended by Ctrl-C or SIGTERM; what was done is kept.

    Carries the signal's number and, for a training run, the folder it is saved in.
    """

    def __init__(self, signal_number: int, saved_in: Path | None = None) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number, self.saved_in = signal_number, saved_in

    @property
    def exit_code(self) -> int:
        """The exit code that shells give a process ended by a signal."""
        return 128 + self.signal_number


class FacevaeError(Exception):
    """An expected failure: one line that says what, where and what to do.

    It is raised with its message, or with the parts of it: strings, and an `Argument` wherever the
    message names one. File names and file contents in a message cannot break the line or control
    the terminal.
    """

    exit_code = 1

    def __str__(self) -> str:
        """The message in terms of the Python API."""
        return self.line(str)

    def line(self, write: Callable[[Argument], str]) -> str:
        """The message, its arguments written by `write` and its control characters escaped."""
        parts = (write(part) if isinstance(part, Argument) else str(part) for part in self.args)
        return _CONTROL.sub(lambda c: c[0].encode("unicode_escape").decode(), "".join(parts))


class UsageError(FacevaeError):
    """An option or argument with an impossible value, refused before any work is done."""

    exit_code = 2


class ImageError(FacevaeError):
    """An image that cannot be read, or lacks the face asked for."""


class NoFaceError(ImageError):
    """A photo in which no face was found."""


class ModelError(FacevaeError):
    """A model that cannot be found or published, or a file that is not a valid model."""


class DataError(FacevaeError):
    """Training data or labels that cannot be used."""


class RunError(FacevaeError):
    """A training run that cannot be started, resumed or extended as asked."""


class ProcessError(FacevaeError):
    """A failure in one process of a distributed run that the lead process did not have."""


class LatentsError(FacevaeError):
    """A latents file that cannot be used, or a face that is not in it."""

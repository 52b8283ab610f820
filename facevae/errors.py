"""What a user can cause, and the exit code that each kind ends with."""

import re
import signal
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Stopped(Exception):
    """Ctrl-C or SIGTERM ended the work, and what was done is kept.

    Carries the signal's number, and of a run the folder in which it is.
    """

    def __init__(self, signal_number: int, saved_in: Path | None = None) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number, self.saved_in = signal_number, saved_in

    @property
    def exit_code(self) -> int:
        """What shells give a process that a signal has ended."""
        return 128 + self.signal_number


class FacevaeError(Exception):
    """An expected failure: one line that says what, where and what to do.

    Whatever a file or its name says in it, it stays one line and does nothing to a terminal.
    """

    exit_code = 1

    def __str__(self) -> str:
        """Its line, control characters and line breaks spelt out."""
        return _CONTROL.sub(lambda c: c[0].encode("unicode_escape").decode(), super().__str__())


class UsageError(FacevaeError):
    """An option or argument that cannot be meant: refused before any work."""

    exit_code = 2


class ImageError(FacevaeError):
    """An image that cannot be read."""


class ModelError(FacevaeError):
    """A model that cannot be found or published, or a file that is not a sound model."""


class DataError(FacevaeError):
    """Training data or labels that cannot be used."""


class RunError(FacevaeError):
    """A run folder that cannot be started, resumed or extended as asked."""


class ProcessError(FacevaeError):
    """What ended one of several processes of a run, which the others have not met."""


class LatentsError(FacevaeError):
    """A file of latents that cannot be used, or a face that is not in it."""

"""Handling of Ctrl-C and SIGTERM, so that work can be saved before the process stops."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NOTICE = b"\nstopping as soon as the work is saved; Ctrl-C again stops at once\n"
_STDERR = 2


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the received stop signal, or 0.

    Inside the block, the first SIGINT (Ctrl-C) or SIGTERM is only recorded, so that work can be
    saved; a second one has its usual effect. On a terminal, a line says so after Ctrl-C. Outside the main thread, signal handlers stay as they
    are, and the function always returns 0.
    """
    received = 0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = number
        if number == signal.SIGINT and os.isatty(_STDERR):
            os.write(_STDERR, _NOTICE)  # a stream may be in the middle of a write
        for handled, handler in previous.items():
            signal.signal(handled, handler)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

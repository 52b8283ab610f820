"""Requests to stop, so that work can be saved first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Yield a question: the signal by which this process was asked to stop, or 0.

    Inside, a first Ctrl-C or SIGTERM only sets the answer, so that work can be saved; a second
    one acts at once. Elsewhere than in the main thread nothing is changed.
    """
    received = 0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = number
        for known, handler in previous.items():
            signal.signal(known, handler)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

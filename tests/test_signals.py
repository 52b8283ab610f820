"""The first stop signal is only recorded; the second one has its usual effect."""

import signal
import threading

import pytest

from facevae.system import signals
from facevae.system.signals import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_only_asks_to_stop(number):
    before = signal.getsignal(number)
    with stop_requests() as stop_signal:
        assert stop_signal() == 0
        signal.raise_signal(number)
        assert stop_signal() == number
    assert signal.getsignal(number) == before


def interrupt_twice():
    with stop_requests() as stop_signal:
        signal.raise_signal(signal.SIGTERM)
        assert stop_signal() == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_acts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt_twice()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_signal_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stop_requests() as stop_signal:
            seen.extend([stop_signal(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0, before]


@pytest.mark.parametrize(("is_terminal", "is_told"), [(True, True), (False, False)])
def test_on_a_terminal_a_line_says_what_ctrl_c_does(monkeypatch, is_terminal, is_told):
    written = []
    monkeypatch.setattr(signals.os, "isatty", lambda _: is_terminal)
    monkeypatch.setattr(signals.os, "write", lambda place, text: written.append((place, text)))
    with stop_requests():
        signal.raise_signal(signal.SIGTERM)
    assert written == []
    with stop_requests():
        signal.raise_signal(signal.SIGINT)
    assert [place for place, _ in written] == ([2] if is_told else [])
    assert all(b"Ctrl-C again stops at once" in text for _, text in written)

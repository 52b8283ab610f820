"""Measuring keeps to its share of a training's time."""

import itertools
from types import SimpleNamespace

import pytest

from facevae.training import steps


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize(("cost", "epoch"), [(0.05, 1.2), (0.4, 1.2), (0.05, 200.0), (1.5, 200.0)])
def test_measuring_is_done_at_once_and_then_within_its_share(clock, cost, epoch):
    pace, spent, begun = steps.Pace(), [], clock.seconds
    for number in range(2000):
        clock.seconds += epoch
        if pace.is_due():
            spent.append(number)
            with pace.timed():
                clock.seconds += cost
    assert spent[0] == 0
    assert len(spent) > 1
    allowed = steps._MEASURING_SHARE * (clock.seconds - begun)
    assert cost * len(spent) <= allowed
    assert cost * (len(spent) + 1) > allowed or len(spent) == 2000, "it should use its share"


@pytest.mark.parametrize(("epoch", "every"), [(1.2, 101), (50.0, 3), (200.0, 1)])
def test_long_measurements_are_still_made_every_two_minutes(clock, epoch, every):
    pace, done = steps.Pace(), []
    for number in range(500):
        clock.seconds += epoch
        if pace.is_due():
            done.append(number)
            with pace.timed():
                clock.seconds += 7.0
    apart = {later - earlier for earlier, later in itertools.pairwise(done)}
    assert max(apart) in (every - 1, every)
    assert min(apart) >= every - 1 or every == 1


def test_a_lap_is_due_once_it_is_long_enough(clock):
    watch = steps.Watch(before=0.0)
    laps = []
    for number in range(30):
        clock.seconds += 0.3
        if watch.is_time():
            laps.append(number)
            watch.lap()
    assert laps == list(range(3, 30, 4))

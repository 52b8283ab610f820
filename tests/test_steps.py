"""What stands beside the steps keeps to its share of the time."""

import itertools
from types import SimpleNamespace

import pytest

from facevae import steps


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize(("cost", "epoch"), [(0.05, 1.2), (0.4, 1.2), (0.05, 200.0), (1.5, 200.0)])
def test_what_stands_beside_the_steps_is_done_first_and_then_within_its_share(clock, cost, epoch):
    pace, spent, begun = steps.Pace(), [], clock.seconds
    for number in range(2000):
        clock.seconds += epoch
        if pace.is_due():
            spent.append(number)
            with pace.taken():
                clock.seconds += cost
    assert spent[0] == 0
    assert 0 < len(spent[1:]) <= 1999
    allowed = steps._SHARE_BESIDE * (clock.seconds - begun)
    assert cost * len(spent) <= allowed
    assert cost * (len(spent) + 1) > allowed or len(spent) == 2000, "it should use what it may"


@pytest.mark.parametrize(("epoch", "every"), [(1.2, 101), (50.0, 3), (200.0, 1)])
def test_what_takes_long_is_done_every_two_minutes_all_the_same(clock, epoch, every):
    pace, done = steps.Pace(), []
    for number in range(500):
        clock.seconds += epoch
        if pace.is_due():
            done.append(number)
            with pace.taken():
                clock.seconds += 7.0
    apart = {later - earlier for earlier, later in itertools.pairwise(done)}
    assert max(apart) in (every - 1, every)
    assert min(apart) >= every - 1 or every == 1


def test_a_lap_is_told_once_it_is_long_enough(clock):
    watch = steps.Watch(before=0.0)
    told = []
    for number in range(30):
        clock.seconds += 0.3
        if watch.is_time():
            told.append(number)
            watch.lap()
    assert told == list(range(3, 30, 4))

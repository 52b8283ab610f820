"""A stage's end, by steps or by time; schedules follow the share of either."""

from types import SimpleNamespace

import pytest

from facevae.stages import budget
from facevae.stages.budget import Budget


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_steps_are_known_from_the_beginning_and_take_what_time_they_like(clock):
    steps = Budget(4)
    assert [steps.share(i) for i in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    clock.seconds += 1e6
    steps.close_after(0)
    assert steps.num_steps == 4
    assert steps.progress(0) == (1, 4)
    assert steps.state() == {}


def test_time_is_up_when_it_is_and_the_step_that_was_taken_is_the_last(clock):
    minute = Budget(4, 60)
    for index in range(9):
        clock.seconds += 6
        minute.close_after(index)
        assert minute.num_steps > 1000
        assert minute.share(index + 1) == pytest.approx(0.1 * (index + 1))
        assert minute.progress(index) == (6 * (index + 1), 60)
    clock.seconds += 7
    minute.close_after(9)
    assert minute.num_steps == 10
    assert minute.share(10) == 1
    assert minute.progress(9) == (60, 60)


def test_time_between_two_processes_is_not_counted(clock):
    before = Budget(1, 60)
    clock.seconds += 20
    state = before.state()
    clock.seconds += 1e6
    after = Budget(1, 60)
    after.restore(state)
    clock.seconds += 10
    assert after.used_seconds == pytest.approx(30)


def test_more_time_than_was_used_goes_on(clock):
    before = Budget(1, 60)
    clock.seconds += 61
    before.close_after(4)
    longer = Budget(1, 120)
    longer.restore(before.state())
    longer.close_after(4)
    assert before.num_steps == 5
    assert longer.num_steps > 1000
    assert longer.share(5) == pytest.approx(61 / 120)


def test_what_is_left_is_that_of_the_steps_or_of_the_time(clock):
    steps = Budget(10)
    assert steps.seconds_left(2) == 20
    steps.close_after(6)
    assert steps.seconds_left(2) == 6
    minute = Budget(10, 60)
    clock.seconds += 15
    minute.close_after(0)
    assert minute.seconds_left(2) == 45
    clock.seconds += 50
    assert minute.seconds_left(2) == 0

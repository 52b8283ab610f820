"""Steps are recorded, and compiled where that pays; what cannot be done is done without."""

import math

import pytest
import torch
from torch import nn

from facevae.stages import fast
from facevae.stages.fast import WARM_UP, WATCHED, AcceleratedStep

LONG = 10 * fast.LEAST_SECONDS
NUM_CALLS = WARM_UP + WATCHED + 10


def step(forward, x):
    return forward(x).detach() + 1


class Square(nn.Module):
    """x², which has a gradient, as losses do, and a statistic, as batch norm has."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.register_buffer("num_seen", torch.zeros(()))

    def forward(self, x):
        self.num_seen.add_(1)
        return self.one * x * x


def outcome(fast_step, num_calls=NUM_CALLS):
    """What a step gives of 0, 1, …, which is to be x² + 1."""
    found = [fast_step(torch.tensor(float(i))).item() for i in range(num_calls)]
    assert found == [i * i + 1 for i in range(num_calls)]


class Machine:
    """Records and compiles for a step, and remembers what was done."""

    def __init__(self, *, seconds_left=0.0, compiling=None, running=None, recording=None, off=0.0):
        self.done, self.told, self.module = [], [], Square()
        self._compiling, self._running, self._recording = compiling, running, recording
        self._off = off
        self.step = AcceleratedStep(
            step,
            self.square,
            self.module,
            self.told.append,
            lambda _: seconds_left,
            record=self.record,
            compiler=self.compile,
        )

    def square(self, x):
        self.done.append("plain")
        return self.module(x)

    def compile(self, forward):
        self.done.append("compile")
        if self._compiling:
            raise self._compiling

        def compiled(x):
            squared = forward(x)
            self.done[-1] = "compiled"
            if self._running:
                raise self._running
            return squared + self._off * (squared - squared.detach())  # in the gradient alone

        return compiled

    def record(self, whole, inputs):
        self.done.append("record")
        before = len(self.done)
        whole(*inputs)
        (kind,) = self.done[before:]
        del self.done[before:]
        if self._recording and kind in self._recording:
            raise self._recording[kind]

        def replay(x):
            result = whole(x)
            self.done[-1] = f"{kind} replay"
            return result

        return replay


def in_turns(done):
    """What was done, in order, without repetitions."""
    return [what for i, what in enumerate(done) if i == 0 or what != done[i - 1]]


def test_elsewhere_than_on_cuda_a_step_is_called_as_it_is():
    def compiler(_part):
        pytest.fail("compiled")

    square = Square()
    outcome(AcceleratedStep(step, square, square, pytest.fail, lambda _: LONG, compiler=compiler))


def test_a_step_is_recorded_once_and_then_replayed():
    machine = Machine()
    outcome(machine.step)
    assert machine.done == [
        *["plain"] * WARM_UP,
        "record",
        *["plain replay"] * (NUM_CALLS - WARM_UP),
    ]
    assert machine.told == []


def test_where_much_is_left_a_step_is_compiled_and_recorded_anew():
    machine = Machine(seconds_left=LONG)
    outcome(machine.step)
    assert machine.done == [
        *["plain"] * WARM_UP,
        "record",
        *["plain replay"] * WATCHED,
        "compile",
        *["plain", "compiled", "plain"],  # each one's gradient, and a step
        *["compiled"] * (WARM_UP - 1),
        "record",
        *["compiled replay"] * (NUM_CALLS - 2 * WARM_UP - WATCHED),
    ]
    (told,) = machine.told
    assert told.startswith("compiling")
    num_recordings = 2  # which take no step on CUDA
    assert machine.module.num_seen == NUM_CALLS + num_recordings


@pytest.mark.parametrize("off", [0.3, math.nan, math.inf])
def test_a_compiled_step_whose_gradient_is_another_is_not_taken(off):
    machine = Machine(seconds_left=LONG, off=off)
    outcome(machine.step)
    assert "compiled replay" not in machine.done
    assert machine.done[-1] == "plain replay"
    assert "gradient is off by" in machine.told[1]


def test_a_compiled_step_may_round_as_it_likes():
    machine = Machine(seconds_left=LONG, off=0.05)
    outcome(machine.step)
    assert machine.done[-1] == "compiled replay"


@pytest.mark.parametrize("way", ["compiling", "running"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no compiler\nand more"),
        FileNotFoundError("gcc"),
        torch.OutOfMemoryError("out of memory"),
    ],
)
def test_a_step_that_cannot_be_compiled_is_recorded_as_it_is_and_that_is_told_once(way, error):
    machine = Machine(seconds_left=LONG, **{way: error})
    outcome(machine.step, 3 * NUM_CALLS)
    tried = ["compile"] if way == "compiling" else ["compile", "plain", "compiled"]
    once = ["plain", "record", "plain replay"]
    assert in_turns(machine.done) == [*once, *tried, *once]
    reason = str(error).splitlines()[0]
    assert machine.told[1:] == [
        f"training goes on without compiled steps, more slowly ({reason})",
    ]


def test_a_compiled_step_that_cannot_be_recorded_gives_way_to_a_plain_one_that_can():
    refused = RuntimeError("operation not permitted")
    machine = Machine(seconds_left=LONG, recording={"compiled": refused})
    outcome(machine.step)
    once = ["plain", "record", "plain replay"]
    compiled = ["compile", "plain", "compiled", "plain", "compiled", "record"]
    assert in_turns(machine.done) == [*once, *compiled, *once]
    assert len(machine.told) == 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operation not permitted\nwhen stream is capturing"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried"),  # the step alone had enough
    ],
)
def test_a_step_that_cannot_be_recorded_is_called_as_it_is_and_that_is_told_once(error):
    machine = Machine(seconds_left=LONG, recording={"plain": error})
    outcome(machine.step)
    assert in_turns(machine.done) == ["plain", "record", "plain"]
    reason = str(error).splitlines()[0]
    assert machine.told == [f"training goes on without CUDA graphs, more slowly ({reason})"]


def test_what_is_told_is_the_reason_not_what_it_brought_about():
    """As on CUDA, where the end of a recording fails because the step within it has."""

    class Broken(RuntimeError):
        def __init__(self):
            super().__init__("capture was invalidated")
            self.__context__ = RuntimeError("operation not permitted")

    machine = Machine(recording={"plain": Broken()})
    outcome(machine.step)
    assert "(operation not permitted)" in machine.told[0]


def test_how_long_the_steps_take_that_are_left_is_told_from_steps_that_were_waited_for(monkeypatch):
    waits, asked = [], []
    monkeypatch.setattr(fast, "wait_for", lambda _: waits.append(len(machine.done)))
    machine = Machine(seconds_left=0.0)
    monkeypatch.setattr(machine.step, "_seconds_left", lambda each: asked.append(each) or 0.0)
    outcome(machine.step)
    assert len(asked) == 1
    assert 0 < asked[0] < 1
    assert len(waits) == 2 * fast._TIMED


def test_too_little_memory_for_the_step_itself_is_told_as_such():
    def fail(_x):
        raise torch.OutOfMemoryError

    broken = AcceleratedStep(step, fail, Square(), pytest.fail, lambda _: LONG, record=pytest.fail)
    with pytest.raises(torch.OutOfMemoryError):
        broken(torch.tensor(1.0))


def test_an_error_of_the_step_itself_is_its_own():
    def fail(_x):
        raise ZeroDivisionError

    broken = AcceleratedStep(step, fail, Square(), pytest.fail, lambda _: LONG, record=pytest.fail)
    with pytest.raises(ZeroDivisionError):
        broken(torch.tensor(1.0))

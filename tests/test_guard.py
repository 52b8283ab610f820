"""Steps that are not sound change nothing, and are counted."""

import copy

import pytest
import torch
from torch import Tensor, nn

from facevae.stages.guard import MOST_GROWTH, Guard


class Fit:
    """A small network with batch norm, fitted to random numbers; each step's loss may be scaled."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=True)
        self.guard = Guard(self.net, self.optimizer)

    def step(self, index: int, factor: float = 1.0, inputs: float = 1.0) -> bool:
        draw = torch.Generator().manual_seed(index)
        x = torch.randn(16, 4, generator=draw) * inputs
        return bool(self.guard.step(self.net(x).square().mean() * factor))

    def everything(self) -> list[Tensor]:
        """Weights, batch-norm statistics, Adam's moments and step counts."""
        moments = self.optimizer.state_dict()["state"].values()
        statistics = [b for b in self.net.buffers() if b.is_floating_point()]
        inner = [tensor for values in moments for tensor in values.values()]
        return copy.deepcopy([*self.net.parameters(), *statistics, *inner])


@pytest.fixture
def fit():
    fit = Fit()
    for index in range(25):
        assert fit.step(index)
    return fit


BAD = {
    "a loss that is not a number": {"factor": float("nan")},
    "an infinite loss": {"factor": float("inf")},
    "inputs that are not numbers": {"inputs": float("nan")},
    "inputs beyond numbers": {"inputs": 1e30},
    "a gradient far larger than usual": {"factor": 10 * MOST_GROWTH},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_step_that_is_not_sound_leaves_everything_as_it_was(fit, bad):
    before = fit.everything()
    assert not fit.step(25, **bad)
    after = fit.everything()
    assert len(before) == len(after) == 6 + 2 + 3 * 6
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))
    counts = fit.guard.counts()
    assert (counts.num_sound, counts.num_skipped) == (25, 1)


def test_steps_after_one_that_was_skipped_are_those_of_a_training_without_it(fit):
    other = Fit()
    for index in range(25):
        other.step(index)
    fit.step(25, factor=float("nan"))
    for index in range(26, 30):
        assert fit.step(index)
        assert other.step(index)
    assert all(a.equal(b) for a, b in zip(fit.everything(), other.everything(), strict=True))


def test_the_first_step_of_all_may_be_the_bad_one():
    fit = Fit()
    weights = copy.deepcopy(list(fit.net.parameters()))
    assert not fit.step(0, factor=float("nan"))
    assert all(a.equal(b) for a, b in zip(weights, fit.net.parameters(), strict=True))
    assert fit.step(1)


def test_gradients_may_grow_as_they_do_in_a_sound_training(fit):
    assert fit.step(25, factor=0.3 * MOST_GROWTH)
    assert fit.step(26, factor=1e-6)


def test_gradients_that_have_grown_for_good_are_soon_followed_again(fit):
    taken = [fit.step(25 + i, factor=10 * MOST_GROWTH) for i in range(60)]
    assert not taken[0]
    first = taken.index(True)
    assert all(taken[first:])
    assert not fit.guard.counts().is_failing


def test_a_restored_guard_decides_as_the_one_before(fit):
    fit.step(25, factor=float("nan"))
    other = Fit()
    other.net.load_state_dict(fit.net.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(fit.optimizer.state_dict()))
    other.guard.restore(copy.deepcopy(fit.guard.state()))
    assert other.guard.counts() == fit.guard.counts()
    bad = {"factor": 10 * MOST_GROWTH}
    for one in (fit, other):
        assert not one.step(26, **bad)
        assert one.step(27)
    assert all(a.equal(b) for a, b in zip(fit.everything(), other.everything(), strict=True))
    assert fit.guard.state()["figures"].equal(other.guard.state()["figures"])


def test_a_training_is_failing_once_more_steps_are_skipped_than_taken(fit):
    failing = []
    for index in range(100):
        fit.step(25 + index, factor=float("nan") if index % 5 < 3 else 1.0)
        failing.append(fit.guard.counts().is_failing)
    assert not any(failing[:20])
    assert failing[-1]


def test_one_bad_step_in_three_is_no_failing(fit):
    for index in range(200):
        fit.step(25 + index, factor=float("nan") if index % 3 == 0 else 1.0)
        assert not fit.guard.counts().is_failing
    assert fit.guard.counts().num_skipped == 67


def test_what_begins_anew_may_have_gradients_of_any_size_but_not_forget_what_was_skipped(fit):
    assert not fit.step(25, factor=10 * MOST_GROWTH)
    assert fit.guard.counts().num_skipped == 1
    fit.guard.reset()
    assert fit.step(25, factor=10 * MOST_GROWTH)
    counts = fit.guard.counts()
    assert (counts.num_sound, counts.num_skipped) == (1, 1)

"""The length of a stage, in steps or in time."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor


class Budget:
    """A budget of `num_steps`, or of `seconds` over all the processes that continued the stage.

    With `seconds`, `num_steps` is a bound without meaning until the time is up; then it is exact.
    """

    def __init__(self, num_steps: int, seconds: float | None = None) -> None:
        self.num_steps = num_steps if seconds is None else 2**62
        self.seconds = seconds
        self._started = time.monotonic()
        self._num_done = 0

    @property
    def used_seconds(self) -> float:
        """Time spent on the stage, without the time between two processes."""
        return time.monotonic() - self._started

    def share(self, index: int) -> float:
        """Share of the budget used before step `index`, in [0, 1]; schedules follow it."""
        used = index / self.num_steps
        if self.seconds is not None:
            used = max(used, self.used_seconds / self.seconds)
        return min(1.0, used)

    def close_after(self, index: int) -> None:
        """Note that step `index` is done; it was the last one if the time is up."""
        self._num_done = index + 1
        if self.seconds is not None and self.used_seconds >= self.seconds:
            self.num_steps = index + 1

    def seconds_left(self, seconds_per_step: float) -> float:
        """Time that the remaining steps take, at `seconds_per_step` each."""
        if self.seconds is not None:
            return max(0.0, self.seconds - self.used_seconds)
        return max(0, self.num_steps - self._num_done) * seconds_per_step

    def progress(self, index: int) -> tuple[int, int]:
        """Amount done after step `index`, and the total: in steps, or in whole seconds."""
        if self.seconds is None:
            return index + 1, self.num_steps
        total = max(1, round(self.seconds))
        return min(max(1, round(self.used_seconds)), total), total

    def state(self) -> dict[str, Tensor]:
        """The time used; empty for a budget of steps, whose progress is the next step's index."""
        if self.seconds is None:
            return {}
        return {"seconds": torch.tensor(self.used_seconds, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; from an empty state, time counts from when this was made."""
        if "seconds" in state:
            self._started = time.monotonic() - float(state["seconds"])

"""How long a stage goes on: so many steps, or so much time."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor


class Budget:
    """`num_steps`, or as many as `seconds` have room for, over all the processes that it took.

    With time, `num_steps` is only the most that can be, until the time is up and it is known.
    """

    def __init__(self, num_steps: int, seconds: float | None = None) -> None:
        self.num_steps = num_steps if seconds is None else 2**62
        self.seconds = seconds
        self._begun = time.monotonic()
        self._num_done = 0

    @property
    def used_seconds(self) -> float:
        """Time since it began, without what lay between two processes."""
        return time.monotonic() - self._begun

    def share(self, index: int) -> float:
        """How much of it is used before step `index`, in [0, 1]: what schedules follow."""
        used = index / self.num_steps
        if self.seconds is not None:
            used = max(used, self.used_seconds / self.seconds)
        return min(1.0, used)

    def close_after(self, index: int) -> None:
        """Have step `index` be the last where the time is up."""
        self._num_done = index + 1
        if self.seconds is not None and self.used_seconds >= self.seconds:
            self.num_steps = index + 1

    def seconds_left(self, a_step: float) -> float:
        """How long the steps after the last one closed take, where each takes so many seconds."""
        if self.seconds is not None:
            return max(0.0, self.seconds - self.used_seconds)
        return max(0, self.num_steps - self._num_done) * a_step

    def progress(self, index: int) -> tuple[int, int]:
        """What is done after step `index`, and what there is in all: steps, or seconds."""
        if self.seconds is None:
            return index + 1, self.num_steps
        total = max(1, round(self.seconds))
        return min(max(1, round(self.used_seconds)), total), total

    def state(self) -> dict[str, Tensor]:
        """What was used of the time; of steps one is told."""
        if self.seconds is None:
            return {}
        return {"seconds": torch.tensor(self.used_seconds, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; where no time was counted, it begins now."""
        if "seconds" in state:
            self._begun = time.monotonic() - float(state["seconds"])

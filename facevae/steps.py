"""Steps of a stage, one after another: resumed, watched, counted, and saved when it is time."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from facevae import parallel
from facevae.config import PriorConfig
from facevae.errors import RunError, Stopped
from facevae.guard import Counts
from facevae.runs import Run, RunFolder
from facevae.runtime import memory_bytes
from facevae.stages import Stage

_SECONDS_A_STATE = 300.0
_SECONDS_A_RECORD = 1.0
_SHARE_BESIDE = 0.01  # of a stage's time, for what is not steps: figures, pictures, models, states


class Listener(Protocol):
    """What a run tells while it goes on."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts of `task`; `note` has figures in a few words."""

    def epoch(self, figures: Mapping[str, Any]) -> None:
        """An epoch's record, as in `metrics.jsonl`."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Work:
    """A run, where it is kept, who is told, and whether it was asked to stop."""

    run: Run
    folder: RunFolder
    listener: Listener
    stop_signal: Callable[[], int]
    skipped: dict[str, int] = field(default_factory=dict)  # steps, by stage
    save_progress: bool = True  # a finished model stays in place until the longer run's takes it

    def check_stop(self) -> None:
        """Raise `Stopped` if that was asked for; whoever calls this has nothing to save."""
        if stop := self.stop_signal():
            raise Stopped(stop)

    def progress(self, task: str, done: int, total: int) -> None:
        """Tell how far something is that has nothing to save, and stop if that was asked for."""
        self.listener.progress(task, done, total)
        self.check_stop()


def take_steps(
    work: Work,
    name: str,
    stage: Stage,
    first: int,
    key: str = "",
    prior_config: PriorConfig | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Take the steps from `first` on; between two, save the state when it is time or asked for.

    Whoever follows takes them too, beginning with the same state.
    """
    device = work.run.device
    parallel.from_lead((name, first, prior_config))
    parallel.tensors_from_lead(stage.state() | stage.inputs(), device)
    accord, saved, index = parallel.Accord(device), time.monotonic(), first
    while index < stage.budget.num_steps:
        terms = stage.step(index)
        stage.budget.close_after(index)
        yield index, terms
        index += 1
        stop = accord(work.stop_signal())
        if stop or time.monotonic() - saved > _SECONDS_A_STATE:
            work.folder.save_state(name, stage.state(), index, key)
            saved = time.monotonic()
        if stop:
            raise Stopped(stop)


def resume(work: Work, name: str, stage: Stage, key: str = "") -> int:
    """Restore the stage's saved state, if there is one; returns the next step to take."""
    saved = work.folder.load_state(name, key, warn=work.listener.notice)
    if saved is None:
        return 0
    state, step = saved
    stage.restore(state)
    stage.budget.close_after(step - 1)
    if step < stage.budget.num_steps:
        work.listener.notice(f"{work.folder.path}: going on with the {name} after step {step}")
    return step


def counted(folder: RunFolder, stage: Stage, index: int, advice: str) -> Counts:
    """What has become of the steps up to `index`. Raises `RunError` where most fail, with advice."""
    counts = stage.guard.counts()
    is_last = index + 1 == stage.budget.num_steps
    if counts.is_failing or (is_last and counts.num_skipped > counts.num_sound):
        msg = (
            f"{folder.path}: {counts.num_skipped:,} of {index + 1:,} steps were skipped, since their "
            f"gradients were not finite or far too large; the state before is kept; {advice}"
        )
        raise RunError(msg)
    return counts


class Watch:
    """Seconds of work, over all the processes that a run took."""

    def __init__(self, before: float) -> None:
        self._before, self._begun = before, time.monotonic()
        self._lap = self._begun

    def is_time(self) -> bool:
        """Whether the lap is long enough to be told: a GPU waits meanwhile, and a disk."""
        return time.monotonic() - self._lap >= _SECONDS_A_RECORD

    def lap(self) -> float:
        """Seconds since the lap before."""
        before, self._lap = self._lap, time.monotonic()
        return max(self._lap - before, 1e-6)

    def seconds(self) -> float:
        """Seconds in all."""
        return round(self._before + time.monotonic() - self._begun, 3)


class Pace:
    """When there is time for what stands beside the steps: so seldom that it is a small share.

    There always is at first. What it takes depends on nothing else, and nothing else on it.
    """

    def __init__(self) -> None:
        self._begun, self._spent, self._last = time.monotonic(), 0.0, 0.0

    def is_due(self) -> bool:
        """Whether once more, if it takes as long as the last time, stays within the share."""
        return self._spent + self._last <= _SHARE_BESIDE * (time.monotonic() - self._begun)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """What is inside counts."""
        begun = time.monotonic()
        yield
        self._last = time.monotonic() - begun
        self._spent += self._last


def check_finite(folder: RunFolder, figures: Mapping[str, float]) -> None:
    """Raise `RunError` where a figure is not finite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        msg = (
            f"{folder.path}: {', '.join(bad)} is no longer finite; the state before is kept; "
            "start anew in another folder with a lower --learning-rate"
        )
        raise RunError(msg)


def cost_of(run: Run, images: int, seconds: float) -> dict[str, float]:
    """What training on so many images in so many seconds takes."""
    held = {f"{of}_bytes": count for of, count in memory_bytes(run.device).items()}
    return {"images_per_second": images / seconds, **held}


def skipped_words(count: int) -> list[str]:
    """How many steps were skipped, in words; nothing where none were."""
    return [f"{count:,} step{'s' if count > 1 else ''} skipped"] if count else []

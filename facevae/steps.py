"""The one loop of all stages: steps, resumed, watched, counted, recorded, and saved in time."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from facevae import parallel
from facevae.bundle import Bundle, save
from facevae.config import PriorConfig, StageName
from facevae.errors import RunError, Stopped
from facevae.guard import Counts
from facevae.memory import memory_bytes
from facevae.run_folders import RunFolder
from facevae.runs import Run
from facevae.stages import Stage

_SECONDS_A_STATE = 300.0
_STEPS_A_RECORD = 20
_SECONDS_A_RECORD = 1.0
# of a stage's time, for what is not steps: figures, pictures, models, states; and the longest
# without, since slow trainings want to be watched too
_SHARE_BESIDE, _SECONDS_BETWEEN = 0.01, 120.0


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
    """A run, where it is kept, who is told, and whether it was asked to stop.

    `in_place` is how far the model is that the folder holds; see `progress_of`.
    """

    run: Run
    folder: RunFolder
    listener: Listener
    stop_signal: Callable[[], int]
    skipped: dict[str, int] = field(default_factory=dict)  # steps, by stage
    in_place: tuple[float, float] = (0, 0)

    def save_progress(self, bundle: Bundle) -> None:
        """Save a model to use meanwhile, but for one that is further: what begins anew spares it."""
        if progress_of(bundle) >= self.in_place:
            save(bundle, self.folder.model, half=self.run.half)

    def check_stop(self) -> None:
        """Raise `Stopped` if that was asked for; whoever calls this has nothing to save."""
        if stop := self.stop_signal():
            raise Stopped(stop)

    def progress(self, task: str, done: int, total: int) -> None:
        """Tell how far something is that has nothing to save, and stop if that was asked for."""
        self.listener.progress(task, done, total)
        self.check_stop()


def progress_of(bundle: Bundle | None) -> tuple[float, float]:
    """How far a model is: images that its network has seen, and epochs of its finish."""
    known = bundle.provenance if bundle else {}
    return known.get("images_seen", 0), known.get("finish", {}).get("epochs", 0)


class Fitting(ABC):
    """What a stage has of its own in the loop, beside the steps themselves."""

    stage: Stage
    name: str  # of its state
    key: str = ""  # what its state depends on beside the run
    stage_name: StageName  # of the run, to which its records belong
    event: str  # of the records of its steps
    task: str  # what the user is told that is done
    advice: str  # to the user, where it fails
    too_few: str = ""  # to the user, where `{epochs}` of them were made; empty if that may be
    unit = "images"  # what a step sees `size` of: images, or latents
    size: int
    prior_config: PriorConfig | None = None  # of a prior that whoever follows needs

    def figures(self, means: dict[str, float], index: int) -> dict[str, float]:  # noqa: ARG002 - all terms alike
        """What is recorded after step `index`, where the terms since the last record are `means`."""
        return means

    def ends_epoch(self, index: int) -> bool:  # noqa: ARG002 - there need not be any
        """Whether an epoch ends with step `index`; with the last step one does anyway."""
        return False

    def measure(self, index: int) -> dict[str, Any]:  # noqa: ARG002 - there need not be any
        """What is recorded of the epoch that ends with step `index`; nothing where that is empty."""
        return {}

    @abstractmethod
    def note(self, records: list[dict[str, Any]]) -> str:
        """The last figures in a few words, in parts between " · "; the last record is of steps."""


def fit(work: Work, fitting: Fitting) -> None:
    """Go through a stage, with records of its steps, and of what is measured at each epoch."""
    run, folder, stage, pace = work.run, work.folder, fitting.stage, Pace()

    # Go on from where an earlier process stopped
    first = _resume(work, fitting)
    is_whole = first >= stage.budget.num_steps
    before = folder.recall(fitting.stage_name, first, is_whole=is_whole)
    watch = Watch(folder.records[-1]["seconds"] if folder.records else 0.0)
    sums, num_steps = torch.zeros(len(stage.terms), device=run.device), 0
    counts = stage.guard.counts()

    # Step
    for index, terms in _take_steps(work, fitting, first):
        sums += terms
        num_steps += 1
        is_epoch = index + 1 == stage.budget.num_steps or fitting.ends_epoch(index)
        if is_epoch or ((index + 1) % _STEPS_A_RECORD == 0 and watch.is_time()):
            earlier, counts = counts, _counted(folder, fitting, index)
            where = {**before, "step": before["step"] + index + 1, "seconds": watch.seconds()}
            where[fitting.unit] = before.get(fitting.unit, 0) + (index + 1) * fitting.size
            if num_sound := counts.num_sound - earlier.num_sound:
                means = zip(stage.terms, (sums / num_sound).tolist(), strict=True)
                figures = fitting.figures(dict(means), index)
                check_finite(folder, figures, fitting.advice)
                speed = num_steps * fitting.size / watch.lap()
                figures |= {f"{fitting.unit}_per_second": speed, **_memory(run)}
                skipped = {"skipped_steps": counts.num_skipped}
                folder.record({"event": fitting.event, **where, **figures, **skipped})
            note = fitting.note(folder.records)
            work.listener.progress(fitting.task, *stage.budget.progress(index), note)
            sums.zero_()
            num_steps = 0

        # Measure what would be saved
        is_last = index + 1 == stage.budget.num_steps
        if is_last or (is_epoch and pace.is_due()):
            with pace.taken():
                if found := fitting.measure(index):
                    where["seconds"] = watch.seconds()
                    folder.record({"event": "epoch", "stage": fitting.stage_name, **where, **found})
                folder.save_state(fitting.name, stage.state(), index + 1, fitting.key)
                if found:
                    work.listener.epoch(folder.records[-1])
            watch.lap()
    work.skipped[fitting.name] = stage.guard.counts().num_skipped


def _take_steps(work: Work, fitting: Fitting, first: int) -> Iterator[tuple[int, Tensor]]:
    """Take the steps from `first` on; between two, save the state when it is time or asked for.

    Whoever follows takes them too, beginning with the same state.
    """
    device, stage = work.run.device, fitting.stage
    parallel.from_lead((fitting.name, first, fitting.prior_config))
    parallel.tensors_from_lead(stage.state() | stage.inputs(), device)
    accord, saved, index = parallel.Accord(device), time.monotonic(), first
    while index < stage.budget.num_steps:
        terms = stage.step(index)
        stage.budget.close_after(index)
        yield index, terms
        index += 1
        stop = accord(work.stop_signal())
        if stop or time.monotonic() - saved > _SECONDS_A_STATE:
            work.folder.save_state(fitting.name, stage.state(), index, fitting.key)
            saved = time.monotonic()
        if stop:
            raise Stopped(stop)


def _resume(work: Work, fitting: Fitting) -> int:
    """Restore the stage's saved state, if there is one; returns the next step to take."""
    stage, path = fitting.stage, work.folder.path
    saved = work.folder.load_state(fitting.name, fitting.key, warn=work.listener.notice)
    if saved is None:
        return 0
    state, step = saved
    stage.restore(state)
    stage.budget.close_after(step - 1)
    if step > stage.budget.num_steps and fitting.too_few:
        epochs = step * fitting.size // len(work.run.faces.train)
        msg = f"{path}: {fitting.too_few.format(epochs=epochs)}"
        raise RunError(msg)
    if step < stage.budget.num_steps:
        work.listener.notice(f"{path}: going on with the {fitting.name} after step {step}")
    return step


def _counted(folder: RunFolder, fitting: Fitting, index: int) -> Counts:
    """What has become of the steps up to `index`. Raises `RunError` where most fail, with advice."""
    counts = fitting.stage.guard.counts()
    is_last = index + 1 == fitting.stage.budget.num_steps
    if counts.is_failing or (is_last and counts.num_skipped > counts.num_sound):
        msg = (
            f"{folder.path}: {counts.num_skipped:,} of {index + 1:,} steps were skipped, since their "
            f"gradients were not finite or far too large; the state before is kept; {fitting.advice}"
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
        self._begun = self._ended = time.monotonic()
        self._spent, self._last = 0.0, 0.0

    def is_due(self) -> bool:
        """Whether once more, if it takes as long as the last time, stays within the share.

        Or whether there has been nothing for long.
        """
        now = time.monotonic()
        is_little = self._spent + self._last <= _SHARE_BESIDE * (now - self._begun)
        return is_little or now - self._ended >= _SECONDS_BETWEEN

    @contextmanager
    def taken(self) -> Iterator[None]:
        """What is inside counts."""
        begun = time.monotonic()
        yield
        self._ended = time.monotonic()
        self._last = self._ended - begun
        self._spent += self._last


def check_finite(folder: RunFolder, figures: Mapping[str, float], advice: str) -> None:
    """Raise `RunError` where a figure is not finite, with advice."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        msg = (
            f"{folder.path}: the training has diverged ({', '.join(bad)} not finite); "
            f"the state before is kept; {advice}"
        )
        raise RunError(msg)


def _memory(run: Run) -> dict[str, float]:
    """What the process holds, and the most that PyTorch has held on a GPU, in bytes."""
    return {f"{of}_bytes": count for of, count in memory_bytes(run.device).items()}


def last_figures(records: list[dict[str, Any]], event: str) -> dict[str, Any]:
    """The last record of that event; empty where there is none."""
    return next((r for r in reversed(records) if r["event"] == event), {})


def skipped_words(count: int) -> list[str]:
    """How many steps were skipped, in words; nothing where none were."""
    return [f"{count:,} step{'s' if count > 1 else ''} skipped"] if count else []

"""The training loop shared by all stages: resuming, stepping, recording, measuring and saving."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from facevae.config import PriorConfig, StageName
from facevae.errors import RunError, Stopped
from facevae.models.bundle import Bundle, save
from facevae.stages.guard import Counts
from facevae.stages.stage import Stage
from facevae.system import parallel
from facevae.system.memory import memory_bytes
from facevae.training.run_folders import RunFolder
from facevae.training.runs import Run

_SECONDS_A_STATE = 300.0  # between saved states
# a record of the loss is written after a multiple of so many steps, and at most so often
_STEPS_A_RECORD, _SECONDS_A_RECORD = 20, 1.0
# Measuring (figures, pictures, models, states) takes this share of a stage's time. It happens at
# least this often (s), so that slow trainings can be watched too.
_MEASURING_SHARE, _MOST_SECONDS_BETWEEN = 0.01, 120.0


class Listener(Protocol):
    """Receives the progress, figures and notices of a run."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Called when `done` of `total` parts of `task` are done; `note` is a line of figures."""

    def epoch(self, figures: Mapping[str, Any]) -> None:
        """Called with an epoch's record, as in `metrics.jsonl`."""

    def notice(self, text: str) -> None:
        """Called with a line that the user should read."""


@dataclass
class Work:
    """The state of a run in this process, shared by its stages.

    `stop_signal` returns the number of the received stop signal, or 0. `skipped` counts skipped
    steps by stage. `saved_progress` is the progress (see `progress_of`) of the model in the folder,
    which a model with less progress does not replace.
    """

    run: Run
    folder: RunFolder
    listener: Listener
    stop_signal: Callable[[], int]
    skipped: dict[str, int] = field(default_factory=dict)
    saved_progress: tuple[float, float] = (0, 0)

    def save_progress(self, bundle: Bundle) -> None:
        """Save a model for use in the meantime, unless the folder holds one with more progress."""
        if progress_of(bundle) >= self.saved_progress:
            save(bundle, self.folder.model, half=self.run.half)

    def check_stop(self) -> None:
        """Raise `Stopped` after a stop signal. The caller has nothing to save."""
        if stop := self.stop_signal():
            raise Stopped(stop)

    def progress(self, task: str, done: int, total: int) -> None:
        """Report the progress of a task without state. Raises `Stopped` after a stop signal."""
        self.listener.progress(task, done, total)
        self.check_stop()


def progress_of(bundle: Bundle | None) -> tuple[float, float]:
    """Images that the model's network was trained on, and epochs of its finish; 0 if None."""
    provenance = bundle.provenance if bundle else {}
    return provenance.get("images_seen", 0), provenance.get("finish", {}).get("epochs", 0)


class StageStart(NamedTuple):
    """What the first process sends to the others before the steps of a stage."""

    stage_name: str  # see `Fitting.name`
    first_step: int
    prior_config: PriorConfig | None  # only for a finish


class Fitting(ABC):
    """What the loop needs to know about a stage, beside its steps."""

    stage: Stage
    name: str  # name of its saved state
    key: str = ""  # a saved state with another key is not resumed
    stage_name: StageName  # stage of the run to which its records belong
    event: str  # `event` of its records of steps
    task: str  # name of the task, for the progress line
    advice: str  # what the user can do if it fails
    # error if more than the requested epochs were made, with a field `{epochs}`; empty: no error
    too_few: str = ""
    unit = "images"  # of the examples in a batch: "images" or "latents"
    size: int  # batch size, in examples
    prior_config: PriorConfig | None = None  # of the prior that other processes need for the stage

    def figures(self, means: dict[str, float], index: int) -> dict[str, float]:  # noqa: ARG002 - for subclasses
        """Figures to record after step `index`; `means` are of the terms since the last record."""
        return means

    def ends_epoch(self, index: int) -> bool:  # noqa: ARG002 - for subclasses
        """Whether an epoch ends with step `index`. The last step always ends one."""
        return False

    def measure(self, index: int) -> dict[str, Any]:  # noqa: ARG002 - for subclasses
        """Figures to record for the epoch that ends with step `index`; if empty, no record."""
        return {}

    @abstractmethod
    def note(self, records: list[dict[str, Any]]) -> str:
        """The last figures, for the progress line, separated by " · ". The last record is of steps."""


def fit(work: Work, fitting: Fitting) -> None:
    """Run a stage to its end, with records of its steps and of what is measured at epochs.

    Raises `RunError` for figures that are not finite or if most steps are skipped, and `Stopped`
    after a stop signal, once the state is saved.
    """
    run, folder, stage, pace = work.run, work.folder, fitting.stage, Pace()

    # Resume where an earlier process stopped
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
        is_last = index + 1 == stage.budget.num_steps
        is_epoch = is_last or fitting.ends_epoch(index)
        if is_epoch or ((index + 1) % _STEPS_A_RECORD == 0 and watch.is_time()):
            earlier_counts, counts = counts, _checked_counts(folder, fitting, index)
            position = {**before, "step": before["step"] + index + 1, "seconds": watch.seconds()}
            position[fitting.unit] = before.get(fitting.unit, 0) + (index + 1) * fitting.size
            if num_sound := counts.num_sound - earlier_counts.num_sound:
                means = zip(stage.terms, (sums / num_sound).tolist(), strict=True)
                figures = fitting.figures(dict(means), index)
                check_finite(folder, figures, fitting.advice)
                speed = num_steps * fitting.size / watch.lap()
                figures |= {f"{fitting.unit}_per_second": speed, **_memory(run)}
                skipped = {"skipped_steps": counts.num_skipped}
                folder.record({"event": fitting.event, **position, **figures, **skipped})
            note = fitting.note(folder.records)
            work.listener.progress(fitting.task, *stage.budget.progress(index), note)
            sums.zero_()
            num_steps = 0

        # Measure and save
        if is_last or (is_epoch and pace.is_due()):
            with pace.timed():
                if found := fitting.measure(index):
                    position["seconds"] = watch.seconds()
                    of_epoch = {"event": "epoch", "stage": fitting.stage_name}
                    folder.record({**of_epoch, **position, **found})
                folder.save_state(fitting.name, stage.state(), index + 1, fitting.key)
                if found:
                    work.listener.epoch(folder.records[-1])
            watch.lap()
    work.skipped[fitting.name] = stage.guard.counts().num_skipped


def _take_steps(work: Work, fitting: Fitting, first: int) -> Iterator[tuple[int, Tensor]]:
    """Take the steps from `first` on, and yield the index and loss terms of each.

    Between steps, the state is saved at intervals, and after a stop signal, which raises `Stopped`.
    Other processes receive the state before the first step, and take the same steps.
    """
    device, stage = work.run.device, fitting.stage
    parallel.from_lead(StageStart(fitting.name, first, fitting.prior_config))
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
    """Restore the stage's saved state, if there is one; returns the index of the next step."""
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


def _checked_counts(folder: RunFolder, fitting: Fitting, index: int) -> Counts:
    """Counts of sound and skipped steps up to `index`. Raises `RunError` if most are skipped."""
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
    """A stopwatch over all the sessions of a run, with laps; `before` is in seconds."""

    def __init__(self, before: float) -> None:
        self._before, self._begun = before, time.monotonic()
        self._lap = self._begun

    def is_time(self) -> bool:
        """Whether the lap is long enough for a record, which costs a GPU sync and a disk write."""
        return time.monotonic() - self._lap >= _SECONDS_A_RECORD

    def lap(self) -> float:
        """Seconds since the previous lap, which also starts a new one."""
        before, self._lap = self._lap, time.monotonic()
        return max(self._lap - before, 1e-6)

    def seconds(self) -> float:
        """Seconds in all sessions."""
        return round(self._before + time.monotonic() - self._begun, 3)


class Pace:
    """Decides when to measure, so that measuring takes a small share of the time.

    The first time is always due. Nothing in the training depends on these decisions.
    """

    def __init__(self) -> None:
        self._begun = self._ended = time.monotonic()
        self._spent, self._last = 0.0, 0.0

    def is_due(self) -> bool:
        """Whether another measurement, as long as the last one, would stay within the share.

        It is also due if the last one was long ago.
        """
        now = time.monotonic()
        is_affordable = self._spent + self._last <= _MEASURING_SHARE * (now - self._begun)
        return is_affordable or now - self._ended >= _MOST_SECONDS_BETWEEN

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside the block as spent on measuring."""
        begun = time.monotonic()
        yield
        self._ended = time.monotonic()
        self._last = self._ended - begun
        self._spent += self._last


def check_finite(folder: RunFolder, figures: Mapping[str, float], advice: str) -> None:
    """Raise `RunError`, with advice, if a figure is not finite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        msg = (
            f"{folder.path}: the training has diverged ({', '.join(bad)} not finite); "
            f"the state before is kept; {advice}"
        )
        raise RunError(msg)


def _memory(run: Run) -> dict[str, float]:
    """Memory of the process, and the peak of PyTorch's memory on a GPU, in bytes."""
    return {f"{of}_bytes": count for of, count in memory_bytes(run.device).items()}


def last_figures(records: list[dict[str, Any]], event: str) -> dict[str, Any]:
    """The last record with that `event`; empty if there is none."""
    return next((r for r in reversed(records) if r["event"] == event), {})


def skipped_words(count: int) -> list[str]:
    """The number of skipped steps as words, in a list that is empty if there are none."""
    return [f"{count:,} step{'s' if count > 1 else ''} skipped"] if count else []

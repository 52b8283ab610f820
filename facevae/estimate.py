"""What a run would take in time, disk and memory, measured on a few pictures and steps."""

import dataclasses
import gc
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from facevae.adversary import CYCLE, FinishStage, batch_size
from facevae.augment import NUM_CHANGED
from facevae.batches import Batches, live_on
from facevae.config import ModelConfig, TrainConfig
from facevae.data import Faces, converted
from facevae.errors import DataError, ImageError
from facevae.fast import WARM_UP
from facevae.flow_matching import PriorStage
from facevae.images import load_square
from facevae.labels import Labels
from facevae.latents import posteriors
from facevae.memory import (
    free_bytes,
    is_out_of_memory,
    keep_freed_memory,
    peak_bytes,
    start_peak,
    total_bytes,
)
from facevae.model import VAE
from facevae.pictures import Picture, Source, find_data, list_pictures, opened
from facevae.prior import FlowPrior, build_prior
from facevae.runtime import full_precision, kernels_by_trial, training_precision, wait_for
from facevae.stages import NetworkStage, Stage

_NUM_PICTURES = 64
_NUM_STEPS = 3
_ENCODED = 32  # pictures by which encoding is measured
_SMALL, _LARGER = 2, 8  # batches by which the memory of a step is measured
_USABLE = 0.9  # of free memory: the rest is lost between blocks


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes and counts. `convert_seconds` is 0 where the cache holds the data already.

    What belongs to a stage that is left out is 0.
    """

    num_pictures: int
    cache: str
    cache_bytes: int
    convert_seconds: float
    epochs: float
    images_per_second: float
    train_seconds: float
    prior_seconds: float
    finish_epochs: float
    finish_images_per_second: float
    finish_seconds: float
    memory_bytes: int
    run_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON values."""
        return dataclasses.asdict(self)


def estimate(
    sources: Sequence[Source],
    model: ModelConfig,
    train: TrainConfig,
    device: torch.device,
    cache: Path | None = None,
    labels: Labels | None = None,
) -> Estimate:
    """Measure a few conversions and steps and scale them up.

    Raises `DataError` without pictures, and where there are `labels` but none belongs to a picture.
    """
    files = find_data(sources)
    pictures = list_pictures(files)
    if not pictures:
        msg = f"{', '.join(map(str, sources))}: no pictures in there"
        raise DataError(msg)
    if labels:
        labels.count_among([picture.stem for picture in pictures])
    folder, is_done = converted(files, model.size, cache)
    begun = time.perf_counter()
    some = _some(pictures)
    for chunk in () if is_done else opened(pictures, some):
        for i, open_it in chunk:
            try:
                with open_it() as file:
                    load_square(file, model.size, pictures[i].name)
            except (ImageError, OSError):
                continue  # the conversion itself will name it
    one = (time.perf_counter() - begun) / len(some) / (os.cpu_count() or 1)

    keep_freed_memory()
    on_gpu = _bytes_on_gpu(model, len(pictures), device)
    costs = _Costs(model, train, device, len(pictures))
    with kernels_by_trial():
        stages = (*costs.network(), costs.prior(), *costs.finish())
    finish_state = costs.finish_bytes if "finish" in train.stages else 0
    state_bytes = costs.network_bytes + costs.prior_bytes + finish_state
    return Estimate(
        len(pictures),
        str(folder),
        len(pictures) * model.num_pixels,
        0.0 if is_done else one * len(pictures),
        *stages,
        on_gpu + max(costs.peak, peak_bytes(device)) + 4 * len(pictures) * model.latent_dim * 4,
        2 * state_bytes + costs.network_bytes // 4 * (2 if finish_state else 1),
    )


def fitting_batch_size(
    model: ModelConfig, train: TrainConfig, num_faces: int, device: torch.device
) -> int | None:
    """The largest batch whose steps fit into the GPU's free memory, by steps with small ones.

    None where that cannot be told, or where it is not less than that which did not fit.
    """
    start_peak(device)
    if not (free := free_bytes(device)):
        return None
    left = _USABLE * (free - _bytes_on_gpu(model, num_faces, device))
    try:
        small, a_face = _bytes_of_steps(model, train, device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    if a_face <= 0:
        return None
    fitting = int((left - small) / a_face) + _SMALL
    return fitting if 0 < fitting < min(train.batch_size, num_faces) else None


def _bytes_on_gpu(model: ModelConfig, num_faces: int, device: torch.device) -> int:
    """Of the faces, where they are kept there."""
    num_bytes = num_faces * model.num_pixels
    return num_bytes if live_on(device, num_bytes) else 0


def _bytes_of_steps(
    model: ModelConfig, train: TrainConfig, device: torch.device
) -> tuple[int, float]:
    """What steps of `_SMALL` batches take at most, and what each face more does."""
    small, larger = (_peak_of_steps(model, train, size, device) for size in (_SMALL, _LARGER))
    return small, (larger - small) / (_LARGER - _SMALL)


def _peak_of_steps(
    model: ModelConfig, train: TrainConfig, batch_size: int, device: torch.device
) -> int:
    """Bytes that a second step takes at most: it has the optimiser's moments too."""
    start_peak(device)
    batches = _of_noise(batch_size, model.size, device)
    stage = NetworkStage(VAE(model).to(device), batches, train)
    stage.step(0)
    start_peak(device)  # without what cuDNN took to try its kernels
    stage.step(1)
    return peak_bytes(device)


def _of_noise(batch_size: int, side: int, device: torch.device) -> Batches:
    """Batches that cost what those of faces do."""
    shape, rows = (batch_size, side, side, 3), np.arange(batch_size)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    faces = Faces(noise, [""] * batch_size, rows, rows, [], "")
    return Batches(faces, batch_size, 0, device)


class _Costs:
    """Seconds and bytes of the stages of a run on so many pictures, by a few steps of each."""

    def __init__(
        self, model: ModelConfig, train: TrainConfig, device: torch.device, num_pictures: int
    ) -> None:
        self._train, self._device, self._num_pictures = train, device, num_pictures
        self._vae = VAE(model).to(device)
        self._prior = build_prior(train.prior_config, model.latent_dim).to(device)
        self.network_bytes = 4 * sum(t.nbytes for t in self._vae.state_dict().values())
        self.prior_bytes = self.finish_bytes = 0
        self.peak = 0  # bytes, where they are more than there are

    def network(self) -> tuple[float, float, float]:
        """Epochs, images a second, and seconds of the network's training."""
        if "vae" not in self._train.stages:
            return 0.0, 0.0, 0.0
        size = self._affordable(min(self._train.batch_size, self._num_pictures))
        batches = _of_noise(size, self._vae.config.size, self._device)
        stage = NetworkStage(self._vae, batches, self._train)
        return self._length("vae", _seconds_a_step(stage, self._device) / size, self._train.epochs)

    def _affordable(self, size: int) -> int:
        """`size`, or that of a small batch where steps of so many faces do not fit into memory."""
        if size <= _LARGER:
            return size
        small, a_face = _bytes_of_steps(self._vae.config, self._train, self._device)
        peak = small + int(a_face * (size - _SMALL))
        if not 0 < total_bytes(self._device) < peak:
            return size
        self.peak = peak
        return _LARGER

    def prior(self) -> float:
        """Seconds of encoding faces, and of fitting a flow to that."""
        if "prior" not in self._train.stages or not isinstance(self._prior, FlowPrior):
            return 0.0
        gc.collect()  # the stage before refers to itself
        latent_dim = self._vae.config.latent_dim
        latents = torch.randn(1024, latent_dim, device=self._device)
        stage = PriorStage(self._prior, latents, torch.zeros_like(latents), epochs=1, seed=0)
        self.prior_bytes = sum(t.nbytes for t in stage.state().values())
        num_steps = self._train.prior_epochs * 2 * self._num_pictures / stage.batch_size
        in_all = _seconds_a_step(stage, self._device) * num_steps
        return self._encoding() + (self._train.seconds_for("prior") or in_all)

    def _encoding(self) -> float:
        """Seconds of encoding all faces, both sides of each, and those that are changed."""
        side = self._vae.config.size
        images = torch.rand(_ENCODED, 3, side, side, device=self._device)
        in_all = 0.0
        for times, precision in (
            (2, full_precision),
            (NUM_CHANGED, partial(training_precision, self._device)),
        ):
            posteriors(self._vae, [images[:1]], precision)
            begun = time.perf_counter()
            posteriors(self._vae, [images], precision)
            wait_for(self._device)
            in_all += times * (time.perf_counter() - begun) / _ENCODED * self._num_pictures
        return in_all

    def finish(self) -> tuple[float, float, float]:
        """Epochs, images a second, and seconds of the decoder's finish."""
        if "finish" not in self._train.stages:
            return 0.0, 0.0, 0.0
        gc.collect()
        size = min(batch_size(self._train), self._num_pictures)
        batches = _of_noise(size, self._vae.config.size, self._device)
        stage = FinishStage(self._vae, self._prior, batches, self._train)
        an_image = _seconds_a_step(stage, self._device, CYCLE) / size
        self.finish_bytes = sum(t.nbytes for t in stage.state().values())
        return self._length("finish", an_image, self._train.finish_epochs)

    def _length(
        self, stage: Literal["vae", "finish"], an_image: float, epochs: int
    ) -> tuple[float, float, float]:
        # figures, pictures and states take a little more
        an_epoch = 1.02 * an_image * self._num_pictures
        seconds = self._train.seconds_for(stage)
        if seconds is None:
            return float(epochs), 1 / an_image, epochs * an_epoch
        return round(seconds / an_epoch, 1), 1 / an_image, seconds


def _some(pictures: Sequence[Picture]) -> list[int]:
    """Pictures from everywhere; of tables the first rows of one, since rows are read in order."""
    rows = [(str(p.path), p.row, i) for i, p in enumerate(pictures) if p.row is not None]
    if rows:
        return [i for *_, i in sorted(rows)[:_NUM_PICTURES]]
    return list(range(0, len(pictures), max(1, len(pictures) // _NUM_PICTURES)))[:_NUM_PICTURES]


def _seconds_a_step(stage: Stage, device: torch.device, cycle: int = 1) -> float:
    """The mean over many steps, of which every `cycle`-th may cost more."""

    def seconds(steps: Iterable[int]) -> float:
        begun = time.perf_counter()
        for index in steps:
            stage.step(index)
        wait_for(device)
        return time.perf_counter() - begun

    warm_up = 1 if device.type == "cpu" else WARM_UP + 2  # a recording is not what steps cost
    seconds(range(1, 1 + warm_up))
    often = seconds(range(1 + warm_up, 1 + warm_up + _NUM_STEPS)) / _NUM_STEPS
    if cycle == 1:
        return often
    seconds(cycle * n for n in range(1, warm_up))
    return (seconds([cycle * warm_up]) + (cycle - 1) * often) / cycle

"""Estimates of a run's time, disk space and memory, measured on a few pictures and steps."""

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

from facevae.config import ModelConfig, TrainConfig
from facevae.data.augment import NUM_CHANGED
from facevae.data.batches import Batches, live_on
from facevae.data.dataset import Faces, converted
from facevae.data.images import load_square
from facevae.data.labels import Labels
from facevae.data.pictures import Picture, Source, find_data, list_pictures, no_pictures, opened
from facevae.errors import DataError, ImageError
from facevae.latent_space.latents import posteriors
from facevae.networks.prior import FlowPrior, build_prior
from facevae.networks.vae import VAE
from facevae.stages.adversary import CYCLE, FinishStage, batch_size
from facevae.stages.fast import WARM_UP
from facevae.stages.flow_matching import PriorStage
from facevae.stages.network_stage import NetworkStage
from facevae.stages.stage import Stage
from facevae.system.memory import (
    free_bytes,
    is_out_of_memory,
    keep_freed_memory,
    peak_bytes,
    start_peak,
    total_bytes,
)
from facevae.system.runtime import full_precision, kernels_by_trial, training_precision, wait_for

_NUM_PICTURES = 64  # converted to measure conversion
_NUM_STEPS = 3  # taken to measure a stage, after some to warm up
_ENCODED = 32  # images encoded to measure encoding
_SMALL, _LARGER = 2, 8  # batch sizes at which the memory of a step is measured
_USABLE = 0.9  # share of free memory that can be used; fragmentation takes the rest


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes and counts. `convert_seconds` is 0 if the cache already holds the data.

    The values of stages that are not part of the training are 0.
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
        """A dictionary of JSON values, by field name."""
        return dataclasses.asdict(self)


def estimate(
    sources: Sequence[Source],
    model: ModelConfig,
    train: TrainConfig,
    device: torch.device,
    cache: Path | None = None,
    labels: Labels | None = None,
) -> Estimate:
    """Measure a few conversions and steps, and extrapolate to the whole run.

    Raises `DataError` if there are no pictures, or if none of the `labels` belongs to a picture.
    """
    files = find_data(sources)
    pictures = list_pictures(files)
    if not pictures:
        raise DataError(no_pictures(sources))
    if labels:
        labels.count_among([picture.stem for picture in pictures])
    folder, is_done = converted(files, model.size, cache)
    begun = time.perf_counter()
    chosen = _choose(pictures)
    for chunk in () if is_done else opened(pictures, chosen):
        for i, open_it in chunk:
            try:
                with open_it() as file:
                    load_square(file, model.size, pictures[i].name)
            except (ImageError, OSError):
                continue  # the conversion itself will report it
    seconds_a_picture = (time.perf_counter() - begun) / len(chosen) / (os.cpu_count() or 1)

    keep_freed_memory()
    faces_bytes = _bytes_on_gpu(model, len(pictures), device)
    costs = _Costs(model, train, device, len(pictures))
    with kernels_by_trial():
        stages = (*costs.network(), costs.prior(), *costs.finish())
    finish_state = costs.finish_bytes if "finish" in train.stages else 0
    state_bytes = costs.network_bytes + costs.prior_bytes + finish_state
    return Estimate(
        len(pictures),
        str(folder),
        len(pictures) * model.num_pixels,
        0.0 if is_done else seconds_a_picture * len(pictures),
        *stages,
        faces_bytes
        + max(costs.peak, peak_bytes(device))
        + 4 * len(pictures) * model.latent_dim * 4,
        2 * state_bytes + costs.network_bytes // 4 * (2 if finish_state else 1),
    )


def fitting_batch_size(
    model: ModelConfig, train: TrainConfig, num_faces: int, device: torch.device
) -> int | None:
    """The largest batch size that fits into the GPU's free memory, extrapolated from small batches.

    None if it cannot be measured, or is not smaller than the batch size that did not fit.
    """
    start_peak(device)
    if not (free := free_bytes(device)):
        return None
    usable = _USABLE * (free - _bytes_on_gpu(model, num_faces, device))
    try:
        small, per_face = _bytes_of_steps(model, train, device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    if per_face <= 0:
        return None
    fitting = int((usable - small) / per_face) + _SMALL
    return fitting if 0 < fitting < min(train.batch_size, num_faces) else None


def _bytes_on_gpu(model: ModelConfig, num_faces: int, device: torch.device) -> int:
    """Bytes of the training faces on the GPU; 0 if they are not kept there."""
    num_bytes = num_faces * model.num_pixels
    return num_bytes if live_on(device, num_bytes) else 0


def _bytes_of_steps(
    model: ModelConfig, train: TrainConfig, device: torch.device
) -> tuple[int, float]:
    """Peak bytes of a step with a batch of `_SMALL` faces, and bytes of each additional face."""
    small, larger = (_peak_of_steps(model, train, size, device) for size in (_SMALL, _LARGER))
    return small, (larger - small) / (_LARGER - _SMALL)


def _peak_of_steps(
    model: ModelConfig, train: TrainConfig, batch_size: int, device: torch.device
) -> int:
    """Peak bytes of a second step, in which the optimiser's moments exist too."""
    start_peak(device)
    batches = _noise_batches(batch_size, model.size, device)
    stage = NetworkStage(VAE(model).to(device), batches, train)
    stage.step(0)
    start_peak(device)  # does not count what cuDNN used to try its kernels
    stage.step(1)
    return peak_bytes(device)


def _noise_batches(batch_size: int, side: int, device: torch.device) -> Batches:
    """Batches of noise, which cost as much as batches of faces."""
    shape, rows = (batch_size, side, side, 3), np.arange(batch_size)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    faces = Faces(noise, [""] * batch_size, rows, rows, [], "")
    return Batches(faces, batch_size, 0, device)


class _Costs:
    """Seconds and bytes of each stage of a run on so many pictures, from a few steps of each."""

    def __init__(
        self, model: ModelConfig, train: TrainConfig, device: torch.device, num_pictures: int
    ) -> None:
        self._train, self._device, self._num_pictures = train, device, num_pictures
        self._vae = VAE(model).to(device)
        self._prior = build_prior(train.prior_config, model.latent_dim).to(device)
        self.network_bytes = 4 * sum(t.nbytes for t in self._vae.state_dict().values())
        self.prior_bytes = self.finish_bytes = 0
        self.peak = 0  # estimated peak bytes, only if more than the device has

    def network(self) -> tuple[float, float, float]:
        """Epochs, images per second, and seconds of the network's training."""
        if "vae" not in self._train.stages:
            return 0.0, 0.0, 0.0
        size = self._affordable(min(self._train.batch_size, self._num_pictures))
        batches = _noise_batches(size, self._vae.config.size, self._device)
        stage = NetworkStage(self._vae, batches, self._train)
        return self._length("vae", _seconds_a_step(stage, self._device) / size, self._train.epochs)

    def _affordable(self, size: int) -> int:
        """The batch size `size`, or a small one if steps with `size` do not fit into memory."""
        if size <= _LARGER:
            return size
        small, per_face = _bytes_of_steps(self._vae.config, self._train, self._device)
        peak = small + int(per_face * (size - _SMALL))
        if not 0 < total_bytes(self._device) < peak:
            return size
        self.peak = peak
        return _LARGER

    def prior(self) -> float:
        """Seconds of encoding the faces and of fitting a flow; 0 for other priors."""
        if "prior" not in self._train.stages or not isinstance(self._prior, FlowPrior):
            return 0.0
        gc.collect()  # the previous stage is part of a reference cycle
        latent_dim = self._vae.config.latent_dim
        latents = torch.randn(1024, latent_dim, device=self._device)
        stage = PriorStage(self._prior, latents, torch.zeros_like(latents), epochs=1, seed=0)
        self.prior_bytes = sum(t.nbytes for t in stage.state().values())
        num_steps = self._train.prior_epochs * 2 * self._num_pictures / stage.batch_size
        seconds = _seconds_a_step(stage, self._device) * num_steps
        return self._encoding() + (self._train.seconds_for("prior") or seconds)

    def _encoding(self) -> float:
        """Seconds of encoding all faces, their mirror images, and changed versions of them."""
        side = self._vae.config.size
        images = torch.rand(_ENCODED, 3, side, side, device=self._device)
        total = 0.0
        for times, precision in (
            (2, full_precision),
            (NUM_CHANGED, partial(training_precision, self._device)),
        ):
            posteriors(self._vae, [images[:1]], precision)
            begun = time.perf_counter()
            posteriors(self._vae, [images], precision)
            wait_for(self._device)
            total += times * (time.perf_counter() - begun) / _ENCODED * self._num_pictures
        return total

    def finish(self) -> tuple[float, float, float]:
        """Epochs, images per second, and seconds of the decoder's finish."""
        if "finish" not in self._train.stages:
            return 0.0, 0.0, 0.0
        gc.collect()
        size = min(batch_size(self._train), self._num_pictures)
        batches = _noise_batches(size, self._vae.config.size, self._device)
        stage = FinishStage(self._vae, self._prior, batches, self._train)
        seconds_an_image = _seconds_a_step(stage, self._device, CYCLE) / size
        self.finish_bytes = sum(t.nbytes for t in stage.state().values())
        return self._length("finish", seconds_an_image, self._train.finish_epochs)

    def _length(
        self, stage: Literal["vae", "finish"], seconds_an_image: float, epochs: int
    ) -> tuple[float, float, float]:
        """Epochs, images per second, and seconds of a stage with a budget of epochs or time."""
        # figures, pictures and states take 2 % of the time
        seconds_an_epoch = 1.02 * seconds_an_image * self._num_pictures
        seconds = self._train.seconds_for(stage)
        if seconds is None:
            return float(epochs), 1 / seconds_an_image, epochs * seconds_an_epoch
        return round(seconds / seconds_an_epoch, 1), 1 / seconds_an_image, seconds


def _choose(pictures: Sequence[Picture]) -> list[int]:
    """Indices of evenly spaced pictures, or the first rows of a table, which is read in order."""
    rows = [(str(p.path), p.row, i) for i, p in enumerate(pictures) if p.row is not None]
    if rows:
        return [i for *_, i in sorted(rows)[:_NUM_PICTURES]]
    return list(range(0, len(pictures), max(1, len(pictures) // _NUM_PICTURES)))[:_NUM_PICTURES]


def _seconds_a_step(stage: Stage, device: torch.device, cycle: int = 1) -> float:
    """Mean seconds of a step, if every `cycle`-th step costs more than the others."""

    def seconds(steps: Iterable[int]) -> float:
        begun = time.perf_counter()
        for index in steps:
            stage.step(index)
        wait_for(device)
        return time.perf_counter() - begun

    warm_up = (
        1 if device.type == "cpu" else WARM_UP + 2
    )  # recording a step takes longer than a step
    seconds(range(1, 1 + warm_up))
    ordinary = seconds(range(1 + warm_up, 1 + warm_up + _NUM_STEPS)) / _NUM_STEPS
    if cycle == 1:
        return ordinary
    seconds(cycle * n for n in range(1, warm_up))
    return (seconds([cycle * warm_up]) + (cycle - 1) * ordinary) / cycle

"""What a run would take in time, disk and memory, measured on a few pictures and steps."""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facevae.batches import Batches
from facevae.config import ModelConfig, TrainConfig
from facevae.data import Faces, converted
from facevae.errors import DataError, ImageError
from facevae.images import load_square
from facevae.model import VAE
from facevae.pictures import Picture, Source, find_data, list_pictures, opened
from facevae.prior import FlowPrior, build_prior
from facevae.runtime import free_bytes, is_out_of_memory, keep_freed_memory, peak_bytes, start_peak
from facevae.stages import NetworkStage, PriorStage, Stage

_NUM_PICTURES = 64
_NUM_STEPS = 3
_SMALL, _LARGER = 2, 8  # batches by which the memory of a step is measured
_USABLE = 0.9  # of free memory: the rest is lost between blocks


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes and counts. `convert_seconds` is 0 where the cache holds the data already."""

    num_pictures: int
    cache: str
    cache_bytes: int
    convert_seconds: float
    images_per_second: float
    train_seconds: float
    prior_seconds: float
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
) -> Estimate:
    """Measure a few conversions and steps and scale them up. Raises `DataError` without pictures."""
    files = find_data(sources)
    pictures = list_pictures(files)
    if not pictures:
        msg = f"{', '.join(map(str, sources))}: no pictures in there"
        raise DataError(msg)
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
    vae = VAE(model).to(device)
    batch_size = min(train.batch_size, len(pictures))
    a_step = _seconds_a_step(_stage_on_noise(vae, batch_size, train, device), device)
    # held-out figures and batch-norm statistics take about a twentieth more
    train_seconds = 1.05 * a_step * train.epochs * len(pictures) / batch_size
    prior_seconds, prior_bytes = 0.0, 0
    prior = build_prior(train.prior_config, model.latent_dim).to(device)
    if isinstance(prior, FlowPrior):
        latents = torch.randn(1024, model.latent_dim, device=device)
        stage = PriorStage(prior, latents, torch.zeros_like(latents), epochs=1, seed=0)
        num_steps = train.prior_epochs * 2 * len(pictures) / stage.batch_size
        prior_seconds = _seconds_a_step(stage, device) * num_steps
        prior_bytes = sum(t.nbytes for t in stage.state().values())
    state_bytes = 4 * sum(t.nbytes for t in vae.state_dict().values())
    return Estimate(
        len(pictures),
        str(folder),
        len(pictures) * model.num_pixels,
        0.0 if is_done else one * len(pictures),
        batch_size / a_step,
        train_seconds,
        prior_seconds,
        peak_bytes(device) + 4 * len(pictures) * model.latent_dim * 4,
        2 * (state_bytes + prior_bytes) + state_bytes // 4,
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
    data_bytes = num_faces * model.num_pixels
    left = _USABLE * (free - (data_bytes if data_bytes < free / 2 else 0))  # as `Batches` has it
    try:
        small, larger = (_peak_of_steps(model, train, size, device) for size in (_SMALL, _LARGER))
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    a_face = (larger - small) / (_LARGER - _SMALL)
    if a_face <= 0:
        return None
    fitting = int((left - small) / a_face) + _SMALL
    return fitting if 0 < fitting < min(train.batch_size, num_faces) else None


def _peak_of_steps(
    model: ModelConfig, train: TrainConfig, batch_size: int, device: torch.device
) -> int:
    """Bytes that two steps take at most: the second has the optimiser's moments too."""
    start_peak(device)
    stage = _stage_on_noise(VAE(model).to(device), batch_size, train, device)
    for index in range(2):
        stage.step(index)
    return peak_bytes(device)


def _stage_on_noise(
    vae: VAE, batch_size: int, train: TrainConfig, device: torch.device
) -> NetworkStage:
    """A stage that costs what one on faces does."""
    side, rows = vae.config.size, np.arange(batch_size)
    noise = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    faces = Faces(noise, [""] * batch_size, rows, rows, [], "")
    return NetworkStage(vae, Batches(faces, batch_size, 0, device), train)


def _some(pictures: Sequence[Picture]) -> list[int]:
    """Pictures from everywhere; of tables the first rows of one, since rows are read in order."""
    rows = [(str(p.path), p.row, i) for i, p in enumerate(pictures) if p.row is not None]
    if rows:
        return [i for *_, i in sorted(rows)[:_NUM_PICTURES]]
    return list(range(0, len(pictures), max(1, len(pictures) // _NUM_PICTURES)))[:_NUM_PICTURES]


def _seconds_a_step(stage: Stage, device: torch.device) -> float:
    def finish() -> None:
        if device.type == "cuda":
            torch.ones(1, device=device).cpu()  # waits for what was queued before it

    stage.step(0)
    finish()
    begun = time.perf_counter()
    for index in range(1, 1 + _NUM_STEPS):
        stage.step(index)
    finish()
    return (time.perf_counter() - begun) / _NUM_STEPS

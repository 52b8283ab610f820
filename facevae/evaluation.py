"""A model against faces: how well it reconstructs them, and how much its samples are like them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from facevae import metrics
from facevae.batches import batches_of, evenly, watched
from facevae.bundle import Bundle
from facevae.config import TRUE_TEXTURE, WHOLE_TEXTURE
from facevae.conversion import Progress
from facevae.data import Faces, Rows
from facevae.errors import ModelError
from facevae.faces import measure_framing
from facevae.figures import SCORES, Reconstructions, Score, reconstruct
from facevae.framing import framed_alike
from facevae.images import Pixels, to_pixels
from facevae.latents import interpolate
from facevae.losses import kl_divergence
from facevae.model import Coder
from facevae.perceptual import Features, feature_distances, features_of
from facevae.prior import Prior, sample_latents
from facevae.runtime import face_noise, full_precision, generator
from facevae.swd import MAX_IMAGES, SlicedWasserstein

Split = Literal["held-out", "train", "all"]

_CHUNK = 32  # images at a time: what fits a core's cache is scored twice as fast
_NUM_FRAMED = 48  # faces by which the framing is measured
_LEAST_FRAMED = 8  # of fewer, one that was not found well would decide
_NUM_SHOWN, _NUM_SAMPLES_SHOWN, _NUM_WAYS, _WAY_STEPS = 16, 64, 6, 8
_SUBSET = 6  # what a generator's numbers are for


@dataclass(frozen=True)
class Candidate:
    """What is measured: the model, or a baseline, which has no posteriors that say anything."""

    name: str
    coder: Coder
    prior: Prior
    latent_dim: int
    has_posteriors: bool = False


@dataclass(frozen=True)
class Result:
    """A candidate's figures by name, why some are None, and what there is to see.

    `originals`, `reconstructions` and `samples` are pictures (N, size, size, 3), `ways` (W, T,
    size, size, 3) go straight from one face to another. `mean` and `logvar` (N, D) are posteriors
    of the faces, `latents` (M, D) those of the samples.
    """

    name: str
    figures: dict[str, Any]
    reasons: dict[str, str]
    originals: Pixels
    reconstructions: Pixels
    samples: Pixels
    ways: Pixels
    mean: Tensor
    logvar: Tensor
    latents: Tensor


def is_training_set(bundle: Bundle, faces: Faces) -> bool:
    """Whether the model was trained on these very pictures, by what its provenance says."""
    return bundle.provenance.get("fingerprint") == faces.fingerprint


def choose_rows(faces: Faces, split: Split) -> Rows:
    """The faces that count."""
    every = np.sort(np.concatenate([faces.train, faces.held_out]))
    return {"held-out": faces.held_out, "train": faces.train, "all": every}[split]


def framing_problem(bundle: Bundle, faces: Faces, rows: Rows) -> str | None:
    """Why these faces are not what the model expects, if they are framed otherwise."""
    if bundle.framing is None or len(rows) < _LEAST_FRAMED:
        return None
    found = measure_framing(faces.pixels[evenly(rows, _NUM_FRAMED)])
    if found is not None and framed_alike(found, bundle.framing):
        return None
    how = "are not framed alike" if found is None else "are framed otherwise than the model's"
    return (
        f"the faces {how}, which costs every figure; `facevae align --framing MODEL` makes them so"
    )


class Evaluation:
    """Measures candidates against one set of faces."""

    def __init__(
        self,
        faces: Faces,
        rows: Rows,
        device: torch.device,
        *,
        num_samples: int = MAX_IMAGES,
        seed: int = 0,
        features: Features | None = None,
        lpips: Score | None = None,
        progress: Progress = lambda *_: None,
    ) -> None:
        """`features` are Inception's, for FID and KID; without them and `lpips` these are None."""
        self.faces, self.rows, self.device = faces, rows, device
        self.num_samples, self.seed, self.progress = num_samples, seed, progress
        self._features = features
        self._scores = {**SCORES, "ssim": metrics.ssim, **({"lpips": lpips} if lpips else {})}

        # The real faces that sets of as many others are compared with, in an order of chance
        order = torch.randperm(len(rows), generator=generator(seed, _SUBSET)).numpy()
        self.order = order[: min(len(rows), num_samples, MAX_IMAGES)]
        real = rows[self.order]
        self._swd = SlicedWasserstein(self._read("Real faces", real), faces.size, seed)
        self.swd_floor, self.num_floor = self._floor(real)
        self._real_features = (
            features_of(features, self._read("Inception features of real faces", rows))
            if features
            else None
        )

    def _floor(self, real: Rows) -> tuple[dict[str, float] | None, int]:
        """The distance of real faces from real ones: from as many others, or between two halves."""
        everyone = np.concatenate([self.faces.train, self.faces.held_out])
        others = np.setdiff1d(everyone, self.rows)
        if len(others) >= len(real):
            draw = torch.randperm(len(others), generator=generator(self.seed, _SUBSET, 1)).numpy()
            chosen = np.sort(others[draw[: len(real)]])
            return _with_mean(self._swd(self._read("Other real faces", chosen))), len(real)
        half = len(real) // 2
        if not half:
            return None, 0
        swd = SlicedWasserstein(
            self._read("Half of the real faces", real[:half]), self.faces.size, self.seed
        )
        rest = self._read("The other half", real[half : 2 * half])
        return _with_mean(swd(rest)), half

    def measure(self, candidate: Candidate) -> Result:
        """All figures of one candidate."""
        name, coder = candidate.name, candidate.coder

        # Reconstruct
        batches = self._read(f"Reconstructing ({name})", self.rows)
        found = reconstruct(coder, batches, self._scores)
        figures: dict[str, Any] = {
            "latent_dim": candidate.latent_dim,
            "psnr": found.average("psnr"),
            "mse": found.average("mse"),
            "ssim": found.average("ssim"),
            "lpips": found.average("lpips") if "lpips" in found.scores else None,
            "sharpness": found.sharpness,
        }

        # Sample
        samples = _Samples(self._features)
        noted = samples.note(self._sample(candidate, samples.latents))
        swd = self._swd(_first(noted, len(self.order)))
        for _ in noted:
            pass  # what goes beyond the number that the distance takes
        real_sharpness = max(found.average("sharpness_real"), 1e-12)
        figures["sharpness_samples"] = float(torch.cat(samples.sharpness).mean()) / real_sharpness
        figures["swd"] = _with_mean(swd)

        # Come back, and go half the way to another face
        mean = found.mean[self.order]
        halfway = (mean + mean.roll(-1, 0)) / 2
        for key, latents in (("swd_reconstructions", mean), ("swd_midpoints", halfway)):
            what = key.removeprefix("swd_").capitalize()
            decoded = self._decode(f"{what} ({name})", coder, latents)
            figures[key] = _with_mean(self._swd(decoded))

        # What may not be had
        reasons: dict[str, str] = {}
        figures |= self._feature_figures(samples, reasons)
        figures |= self._latent_figures(candidate, found, reasons)
        shown = np.sort(self.order[:_NUM_SHOWN])
        return Result(
            name,
            figures,
            reasons,
            self.faces.pixels[self.rows[shown]],
            to_pixels(_decode(coder, found.mean[shown])),
            np.concatenate(samples.shown)[:_NUM_SAMPLES_SHOWN],
            _ways(coder, mean),
            found.mean,
            found.logvar,
            torch.cat(samples.latents),
        )

    def _feature_figures(self, samples: "_Samples", reasons: dict[str, str]) -> dict[str, Any]:
        if self._real_features is None:
            return {"fid": None, "kid": None}  # the caller knows why
        made = torch.cat(samples.features)
        if min(len(made), len(self._real_features)) < 2:  # noqa: PLR2004 - a covariance
            reasons |= dict.fromkeys(("fid", "kid"), "one face has no distribution")
            return {"fid": None, "kid": None}
        return feature_distances(self._real_features, made, self.seed)

    def _latent_figures(
        self, candidate: Candidate, found: Reconstructions, reasons: dict[str, str]
    ) -> dict[str, Any]:
        names = ("kl", "kl_nats", "kl_dims", "active_units", "posterior_distance")
        if not candidate.has_posteriors:
            reasons |= dict.fromkeys(names, f"{candidate.name} has no posteriors")
            return dict.fromkeys(names)
        dims = kl_divergence(found.mean, found.logvar).mean(0)
        figures: dict[str, Any] = {
            "kl": found.kl_nats / candidate.latent_dim,
            "kl_nats": found.kl_nats,
            "kl_dims": [round(value, 4) for value in dims.tolist()],
            "active_units": found.active_units,
            "posterior_distance": metrics.normal_distance(found.mean, found.logvar),
        }
        if len(found.mean) == 1:
            reasons |= dict.fromkeys(names[3:], "one face has no distribution")
            figures |= dict.fromkeys(names[3:])
        return figures

    # ------------------------------------------------------------ streams of images

    def _read(self, task: str, rows: Rows) -> Iterator[Tensor]:
        batches = batches_of(self.faces, rows, self.device, size=_CHUNK)
        return watched(batches, task, len(rows), self.progress)

    def _sample(self, candidate: Candidate, kept: list[Tensor]) -> Iterator[Tensor]:
        """Samples of the seeds from `seed` on: face i is that of seed + i, as `sample` makes it.

        Their latents are put into `kept`.
        """

        def latents() -> Iterator[Tensor]:
            for start in range(self.seed, self.seed + self.num_samples, _CHUNK):
                seeds = list(range(start, min(start + _CHUNK, self.seed + self.num_samples)))
                noise = face_noise(seeds, candidate.latent_dim).to(self.device)
                with full_precision():
                    kept.append(sample_latents(candidate.prior, noise))
                yield kept[-1]

        decoded = (_decode(candidate.coder, part, WHOLE_TEXTURE) for part in latents())
        task = f"Sampling ({candidate.name})"
        return watched(decoded, task, self.num_samples, self.progress)

    def _decode(self, task: str, coder: Coder, latents: Tensor) -> Iterator[Tensor]:
        decoded = (_decode(coder, part) for part in latents.split(_CHUNK))
        return watched(decoded, task, len(latents), self.progress)


@dataclass
class _Samples:
    """What is kept of samples that pass by."""

    extract: Features | None
    sharpness: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    shown: list[Pixels] = field(default_factory=list)

    def note(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for images in batches:
            self.sharpness.append(metrics.sharpness(images).cpu())
            if self.extract:
                self.features.append(features_of(self.extract, [images]))
            if sum(map(len, self.shown)) < _NUM_SAMPLES_SHOWN:
                self.shown.append(to_pixels(images))
            yield images


def _decode(coder: Coder, latents: Tensor, texture: float = TRUE_TEXTURE) -> Tensor:
    with full_precision():
        images = coder.decode(latents, texture)
    if not images.isfinite().all():
        msg = (
            "the model decodes to what are no numbers; train it again with a lower --learning-rate"
        )
        raise ModelError(msg)
    return images


def _ways(coder: Coder, mean: Tensor) -> Pixels:
    """Pictures (W, T, size, size, 3) on the straight way between pairs of latents (N, D)."""
    pairs = mean[: 2 * _NUM_WAYS].split(2)
    times = torch.linspace(0, 1, _WAY_STEPS)
    strips = [interpolate(p[0], p[-1], times, "lerp") for p in pairs]
    return np.stack([to_pixels(_decode(coder, strip)) for strip in strips])


def _first(batches: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The first `count` images, in batches; no more are taken than those they lie in."""
    while count > 0:
        images = next(batches)[:count]
        count -= len(images)
        yield images


def _with_mean(distances: dict[str, float]) -> dict[str, float]:
    return {**distances, "mean": sum(distances.values()) / len(distances)}

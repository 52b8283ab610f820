"""Evaluation of a model on faces: quality of its reconstructions, samples and latents."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from facevae.config import TRUE_TEXTURE, WHOLE_TEXTURE
from facevae.data.batches import batches_of, evenly, watched
from facevae.data.conversion import Progress
from facevae.data.dataset import Faces, Rows
from facevae.data.image_tensors import to_pixels
from facevae.data.images import Pixels
from facevae.errors import ModelError
from facevae.faces.alignment import measure_framing
from facevae.faces.framing import framed_alike
from facevae.latent_space.latents import interpolate
from facevae.measures import metrics
from facevae.measures.figures import SCORES, Reconstructions, Score, reconstruct
from facevae.measures.losses import kl_divergence
from facevae.measures.perceptual import Features, feature_distances, features_of
from facevae.measures.swd import MAX_IMAGES, SlicedWasserstein
from facevae.models.bundle import Bundle
from facevae.networks.prior import Prior, sample_latents
from facevae.networks.vae import Coder
from facevae.system.runtime import Stream, face_noise, full_precision, generator

Split = Literal["held-out", "train", "all"]

_CHUNK = 32  # batch size: images that fit in a core's cache are scored twice as fast
_NUM_FRAMED = 48  # number of faces on which the framing is measured
_MIN_FRAMED = 8  # with fewer faces, a single badly detected one would decide
_NUM_SHOWN, _NUM_SAMPLES_SHOWN = 16, 64
_NUM_INTERPOLATIONS, _INTERPOLATION_STEPS = 6, 8
_ONE_IMAGE = "a distribution needs at least two images"


@dataclass(frozen=True)
class Candidate:
    """The model, or a baseline to compare it with, whose posteriors carry no information."""

    name: str
    coder: Coder
    prior: Prior
    latent_dim: int
    has_posteriors: bool = False


@dataclass(frozen=True)
class Result:
    """A candidate's figures by name, the reasons why some are None, and pictures to show.

    `originals`, `reconstructions` and `samples` are pictures (N, size, size, 3). `interpolations`
    (P, T, size, size, 3) are T steps of linear interpolation between each of P pairs of faces.
    `mean` and `logvar` (N, D) are the posteriors of the faces, `latents` (M, D) those of the
    samples.
    """

    name: str
    figures: dict[str, Any]
    reasons: dict[str, str]
    originals: Pixels
    reconstructions: Pixels
    samples: Pixels
    interpolations: Pixels
    mean: Tensor
    logvar: Tensor
    latents: Tensor


def is_training_set(bundle: Bundle, faces: Faces) -> bool:
    """Whether the model was trained on these faces, according to its provenance."""
    return bundle.provenance.get("fingerprint") == faces.fingerprint


def choose_rows(faces: Faces, split: Split) -> Rows:
    """Rows of the faces to evaluate on."""
    all_rows = np.sort(np.concatenate([faces.train, faces.held_out]))
    return {"held-out": faces.held_out, "train": faces.train, "all": all_rows}[split]


def framing_problem(bundle: Bundle, faces: Faces, rows: Rows) -> str | None:
    """A warning if the faces are not framed as the model expects, else None.

    Also None if the model states no framing, or if there are too few faces to measure it.
    """
    if bundle.framing is None or len(rows) < _MIN_FRAMED:
        return None
    found = measure_framing(faces.pixels[evenly(rows, _NUM_FRAMED)])
    if found is not None and framed_alike(found, bundle.framing):
        return None
    problem = "alike" if found is None else "like the model's training faces"
    return (
        f"the faces are not framed {problem}, which worsens every figure; "
        "align them with `facevae align --framing MODEL`"
    )


class Evaluation:
    """Measures candidates against the same set of real faces.

    `order` (K,) are positions in `rows` of the real faces that sliced Wasserstein distances compare
    with: K is the number of rows, of samples, or `MAX_IMAGES`, whichever is least. `swd_floor` is
    the distance between two sets of `num_floor` real faces, None if there are too few for it.
    """

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
        """FID and KID need the Inception network `features`, LPIPS needs `lpips`; else None."""
        self.faces, self.rows, self.device = faces, rows, device
        self.num_samples, self.seed, self.progress = num_samples, seed, progress
        self._features = features
        self._scores = {**SCORES, "ssim": metrics.ssim, **({"lpips": lpips} if lpips else {})}

        # A random subset of the real faces, for distances between sets of equal size
        order = torch.randperm(len(rows), generator=generator(seed, Stream.SUBSET)).numpy()
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
        """The distance between two sets of real faces, and the size of each.

        From `real` to as many faces outside `rows`; if there are not enough, between the halves of
        `real`. (None, 0) for a single face.
        """
        all_rows = np.concatenate([self.faces.train, self.faces.held_out])
        others = np.setdiff1d(all_rows, self.rows)
        if len(others) >= len(real):
            rng = generator(self.seed, Stream.SUBSET, 1)
            order = torch.randperm(len(others), generator=rng).numpy()
            chosen = np.sort(others[order[: len(real)]])
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

        # Reconstructions
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

        # Samples
        samples, swd = self._measure_samples(candidate)
        real_sharpness = max(found.average("sharpness_real"), 1e-12)
        figures["sharpness_samples"] = float(torch.cat(samples.sharpness).mean()) / real_sharpness
        figures["swd"] = swd

        # Decoded posterior means, and midpoints between those of two faces
        mean = found.mean[self.order]
        midpoints = (mean + mean.roll(-1, 0)) / 2
        for key, latents in (("swd_reconstructions", mean), ("swd_midpoints", midpoints)):
            task = key.removeprefix("swd_").capitalize()
            decoded = self._decode(f"{task} ({name})", coder, latents)
            figures[key] = _with_mean(self._swd(decoded))

        # Figures that may be unavailable, with the reasons
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
            _interpolations(coder, mean),
            found.mean,
            found.logvar,
            torch.cat(samples.latents),
        )

    def _measure_samples(self, candidate: Candidate) -> tuple["_Samples", dict[str, float]]:
        """What is kept of all samples, and the distance of the first of them from the real faces.

        Samples are made and measured one batch at a time.
        """
        samples = _Samples(self._features)
        stream = self._sample(candidate)

        def compared() -> Iterator[Tensor]:
            """The first samples: as many as the real faces they are compared with."""
            missing = len(self.order)
            while missing > 0:
                latents, images = next(stream)
                samples.add(latents, images)
                yield images[:missing]
                missing -= len(images)

        swd = self._swd(compared())
        for latents, images in stream:
            samples.add(latents, images)
        return samples, _with_mean(swd)

    def _feature_figures(self, samples: "_Samples", reasons: dict[str, str]) -> dict[str, Any]:
        if self._real_features is None:
            return {"fid": None, "kid": None}  # the caller knows the reason
        features = torch.cat(samples.features)
        if min(len(features), len(self._real_features)) < 2:  # noqa: PLR2004 - a covariance
            reasons |= dict.fromkeys(("fid", "kid"), _ONE_IMAGE)
            return {"fid": None, "kid": None}
        return feature_distances(self._real_features, features, self.seed)

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
            reasons |= dict.fromkeys(names[3:], _ONE_IMAGE)
            figures |= dict.fromkeys(names[3:])
        return figures

    # ------------------------------------------------------------ streams of images

    def _read(self, task: str, rows: Rows) -> Iterator[Tensor]:
        batches = batches_of(self.faces, rows, self.device, size=_CHUNK)
        return watched(batches, task, len(rows), self.progress)

    def _sample(self, candidate: Candidate) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of latents (B, D) and samples (B, 3, size, size): `num_samples` in all.

        Sample i has the seed `seed` + i and is the face that the command `sample` makes of it.
        """
        task = f"Sampling ({candidate.name})"
        batches = self._sample_latents(candidate)
        for latents in watched(batches, task, self.num_samples, self.progress):
            yield latents, _decode(candidate.coder, latents, WHOLE_TEXTURE)

    def _sample_latents(self, candidate: Candidate) -> Iterator[Tensor]:
        end = self.seed + self.num_samples
        for start in range(self.seed, end, _CHUNK):
            seeds = list(range(start, min(start + _CHUNK, end)))
            noise = face_noise(seeds, candidate.latent_dim).to(self.device)
            with full_precision():
                latents = sample_latents(candidate.prior, noise)
            yield latents

    def _decode(self, task: str, coder: Coder, latents: Tensor) -> Iterator[Tensor]:
        decoded = (_decode(coder, part) for part in latents.split(_CHUNK))
        return watched(decoded, task, len(latents), self.progress)


@dataclass
class _Samples:
    """What is kept of samples, a part for each batch; `shown` holds only the first pictures."""

    extract: Features | None
    sharpness: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    shown: list[Pixels] = field(default_factory=list)

    def add(self, latents: Tensor, images: Tensor) -> None:
        """Measure a batch of samples."""
        self.latents.append(latents)
        self.sharpness.append(metrics.sharpness(images).cpu())
        if self.extract:
            self.features.append(features_of(self.extract, [images]))
        if sum(map(len, self.shown)) < _NUM_SAMPLES_SHOWN:
            self.shown.append(to_pixels(images))


def _decode(coder: Coder, latents: Tensor, texture: float = TRUE_TEXTURE) -> Tensor:
    with full_precision():
        images = coder.decode(latents, texture)
    if not images.isfinite().all():
        msg = "the model decodes to NaN or infinity; train it again with a lower --learning-rate"
        raise ModelError(msg)
    return images


def _interpolations(coder: Coder, mean: Tensor) -> Pixels:
    """Pictures (P, T, size, size, 3) on straight lines between pairs of latents (N, D)."""
    pairs = mean[: 2 * _NUM_INTERPOLATIONS].split(2)
    times = torch.linspace(0, 1, _INTERPOLATION_STEPS)
    strips = [interpolate(p[0], p[-1], times, "lerp") for p in pairs]
    return np.stack([to_pixels(_decode(coder, strip)) for strip in strips])


def _with_mean(distances: dict[str, float]) -> dict[str, float]:
    return {**distances, "mean": sum(distances.values()) / len(distances)}

"""Whether a model copies: how far its samples are from the nearest training face.

The distance is Euclidean between latents, whitened by the Gaussian of the training faces' aggregate
posterior. Samples are compared with draws of held-out faces' posteriors, which is what a prior
is fitted to: one that has learned faces by heart comes nearer than they do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facevae import metrics
from facevae.batches import batches_of, watched
from facevae.conversion import Progress
from facevae.data import Faces, Rows
from facevae.images import Pixels
from facevae.latents import posteriors
from facevae.model import Coder, draw_posteriors
from facevae.prior import GaussianPrior
from facevae.runtime import full_precision

_NUM_SHOWN = 16
_CHUNK = 32
_POSTERIOR = 7  # what a generator's numbers are for


@dataclass(frozen=True)
class Novelty:
    """Distances to the nearest training face, mirrored or not, in deviations of their latents.

    `samples` (M,) and `held_out` (N,); `neighbours` (≤ 16, size, size, 3) are the training faces
    nearest to the first samples.
    """

    samples: Tensor
    held_out: Tensor
    neighbours: Pixels

    def figures(self) -> dict[str, float | int]:
        """Medians, their ratio, and the counts."""
        samples, held_out = float(self.samples.median()), float(self.held_out.median())
        return {
            "samples": samples,
            "held_out": held_out,
            "ratio": samples / max(held_out, 1e-12),
            "num_samples": len(self.samples),
            "num_held_out": len(self.held_out),
        }


def measure_novelty(
    coder: Coder,
    faces: Faces,
    latents: Tensor,
    *,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Novelty:
    """Of samples with these latents (M, D), drawn from the prior of a model trained on `faces`."""
    device = latents.device

    def read(task: str, rows: Rows) -> Iterator[Tensor]:
        return watched(batches_of(faces, rows, device, size=_CHUNK), task, len(rows), progress)

    # Encode
    plain = posteriors(coder, read("Training faces", faces.train))
    flipped = (images.flip(-1) for images in read("Training faces, mirrored", faces.train))
    mirrored = posteriors(coder, flipped)
    held_mean, held_logvar = posteriors(coder, read("Held-out faces", faces.held_out))
    mean, logvar = (torch.cat(both) for both in zip(plain, mirrored, strict=True))
    whitening = GaussianPrior(latents.shape[1]).to(device)
    whitening.fit(mean, logvar)

    # Compare
    with full_precision():
        unseen = draw_posteriors(held_mean, held_logvar, seed, _POSTERIOR)
        known = whitening.whiten(mean)
        distances, rows = metrics.nearest(whitening.whiten(latents), known)
        others, _ = metrics.nearest(whitening.whiten(unseen), known)

    # Look up
    neighbours = []
    for row in rows[:_NUM_SHOWN].tolist():
        pixels = faces.pixels[faces.train[row % len(faces.train)]]
        neighbours.append(pixels if row < len(faces.train) else pixels[:, ::-1])
    return Novelty(distances.cpu(), others.cpu(), np.stack(neighbours))

"""Detection of memorised faces, by the distance of samples to the nearest training face.

The distance is Euclidean between latents, whitened by a Gaussian fitted to the training faces'
aggregate posterior. The reference is the distance of draws from the posteriors of held-out faces:
a prior is fitted to such draws, and one that has memorised training faces gives samples that are
nearer to them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facevae.data.batches import batches_of, watched
from facevae.data.conversion import Progress
from facevae.data.dataset import Faces, Rows
from facevae.data.images import Pixels
from facevae.latent_space.latents import posteriors
from facevae.measures import metrics
from facevae.networks.prior import GaussianPrior
from facevae.networks.vae import Coder, draw_posteriors
from facevae.system.runtime import Stream, full_precision

_NUM_SHOWN = 16
_CHUNK = 32


@dataclass(frozen=True)
class Novelty:
    """Distances to the nearest training face, mirrored or not, in standard deviations.

    They are those of `samples` (M,) and of `held_out` faces (N,). `neighbours` (≤ 16, size, size,
    3) are the training faces nearest to the first samples, mirrored where the mirror image is
    nearest.
    """

    samples: Tensor
    held_out: Tensor
    neighbours: Pixels

    def figures(self) -> dict[str, float | int]:
        """Medians of both distances, their ratio (samples over held-out), and the counts."""
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
    """Novelty of samples with latents (M, D) from the prior of a model trained on `faces`."""
    device = latents.device

    def read(task: str, rows: Rows) -> Iterator[Tensor]:
        return watched(batches_of(faces, rows, device, size=_CHUNK), task, len(rows), progress)

    # Encode
    original = posteriors(coder, read("Training faces", faces.train))
    flipped = (images.flip(-1) for images in read("Training faces, mirrored", faces.train))
    mirrored = posteriors(coder, flipped)
    held_mean, held_logvar = posteriors(coder, read("Held-out faces", faces.held_out))
    mean, logvar = (torch.cat(pair) for pair in zip(original, mirrored, strict=True))
    whitening = GaussianPrior(latents.shape[1]).to(device)
    whitening.fit(mean, logvar)

    # Compare
    with full_precision():
        held_out = draw_posteriors(held_mean, held_logvar, seed, Stream.HELD_OUT_POSTERIOR)
        training = whitening.whiten(mean)
        sample_distances, rows = metrics.nearest(whitening.whiten(latents), training)
        held_out_distances, _ = metrics.nearest(whitening.whiten(held_out), training)

    # Look up the nearest faces
    neighbours = []
    for row in rows[:_NUM_SHOWN].tolist():
        pixels = faces.pixels[faces.train[row % len(faces.train)]]
        neighbours.append(pixels if row < len(faces.train) else pixels[:, ::-1])
    return Novelty(sample_distances.cpu(), held_out_distances.cpu(), np.stack(neighbours))

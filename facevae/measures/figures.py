"""Figures of reconstructions, as reported by training for held-out faces and by `eval`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae.measures import losses, metrics
from facevae.networks.vae import Coder
from facevae.system.memory import RowBuffer
from facevae.system.runtime import full_precision

Score = Callable[[Tensor, Tensor], Tensor]
"""A score (B,) of each reconstruction and its original, both (B, 3, H, W) in [0, 1]."""

SCORES: Mapping[str, Score] = {
    "psnr": metrics.psnr,
    "mse": losses.mean_squared_error,
    "sharpness": lambda reconstructions, _: metrics.sharpness(reconstructions),
    "sharpness_real": lambda _, originals: metrics.sharpness(originals),
}


@dataclass(frozen=True)
class Reconstructions:
    """Results of encoding and decoding N faces: `scores` (N,) by name, and posteriors (N, D)."""

    scores: dict[str, Tensor]
    mean: Tensor
    logvar: Tensor

    def average(self, score: str) -> float:
        """The mean of a score over the faces."""
        return float(self.scores[score].mean())

    @property
    def sharpness(self) -> float:
        """Mean sharpness of the reconstructions over that of the originals."""
        return self.average("sharpness") / max(self.average("sharpness_real"), 1e-12)

    @property
    def kl_nats(self) -> float:
        """Mean KL divergence of a face's posterior from N(0, I), in nats."""
        return float(metrics.kl_nats(self.mean, self.logvar).mean())

    @property
    def active_units(self) -> int:
        """Number of latent dimensions in use; for a single face, which has no variance, all."""
        return metrics.active_units(self.mean) if len(self.mean) > 1 else self.mean.shape[1]


def reconstruct(
    coder: Coder, batches: Iterable[Tensor], scores: Mapping[str, Score] = SCORES
) -> Reconstructions:
    """Decode images from their posterior means and score each, one batch at a time."""
    score_rows, posteriors = RowBuffer(), RowBuffer()
    with full_precision():
        for images in batches:
            mean, logvar = coder.encode(images)
            decoded = coder.decode(mean)
            score_rows.add(torch.stack([score(decoded, images) for score in scores.values()]).cpu())
            posteriors.add(torch.stack([mean, logvar]))
        by_name = dict(zip(scores, score_rows.rows, strict=True))
        return Reconstructions(by_name, *posteriors.rows)

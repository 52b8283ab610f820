"""Figures of reconstructions: what a training reports of held-out faces, and `eval` of any."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae import losses, metrics
from facevae.memory import RowBuffer
from facevae.model import Coder
from facevae.runtime import full_precision

Score = Callable[[Tensor, Tensor], Tensor]
"""Something of each reconstruction and its original: (B,) from two (B, 3, H, W) in [0, 1]."""

SCORES: Mapping[str, Score] = {
    "psnr": metrics.psnr,
    "mse": losses.mean_squared_error,
    "sharpness": lambda made, _: metrics.sharpness(made),
    "sharpness_real": lambda _, real: metrics.sharpness(real),
}


@dataclass(frozen=True)
class Reconstructions:
    """Faces that went through a model: `scores`, each (N,), by name, and posteriors (N, D)."""

    scores: dict[str, Tensor]
    mean: Tensor
    logvar: Tensor

    def average(self, score: str) -> float:
        """The mean of a score over the faces."""
        return float(self.scores[score].mean())

    @property
    def sharpness(self) -> float:
        """Of the reconstructions over that of the faces themselves."""
        return self.average("sharpness") / max(self.average("sharpness_real"), 1e-12)

    @property
    def kl_nats(self) -> float:
        """KL divergence of a face from N(0, I)."""
        return float(metrics.kl_nats(self.mean, self.logvar).mean())

    @property
    def active_units(self) -> int:
        """Dimensions in use; of a single face nothing tells that one is not."""
        return metrics.active_units(self.mean) if len(self.mean) > 1 else self.mean.shape[1]


def reconstruct(
    coder: Coder, batches: Iterable[Tensor], scores: Mapping[str, Score] = SCORES
) -> Reconstructions:
    """Decode images from their posterior means, and score each; one batch is held at a time."""
    found, posteriors = RowBuffer(), RowBuffer()
    with full_precision():
        for images in batches:
            mean, logvar = coder.encode(images)
            made = coder.decode(mean)
            found.add(torch.stack([score(made, images) for score in scores.values()]).cpu())
            posteriors.add(torch.stack([mean, logvar]))
        joined = dict(zip(scores, found.rows, strict=True))
        return Reconstructions(joined, *posteriors.rows)

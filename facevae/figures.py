"""Figures of reconstructions: what a training reports of held-out faces, and `eval` of any."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae import losses, metrics
from facevae.model import Coder
from facevae.runtime import exact

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
    found: dict[str, list[Tensor]] = {name: [] for name in scores}
    means, logvars = [], []
    with exact():
        for images in batches:
            mean, logvar = coder.encode(images)
            made = coder.decode(mean)
            for name, score in scores.items():
                found[name].append(score(made, images).cpu())
            means.append(mean)
            logvars.append(logvar)
        joined = {name: torch.cat(parts) for name, parts in found.items()}
        return Reconstructions(joined, torch.cat(means), torch.cat(logvars))

"""How good pictures and latents are: pure functions, with their sources."""

from typing import Any

import torch
from torch import Tensor

from facevae.losses import kl_divergence, mean_squared_error


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (B,) in dB, from two (B, 3, H, W) in [0, 1]."""
    mse = mean_squared_error(reconstructions, images)
    return -10 * mse.clamp_min(1e-12).log10()


def sharpness(images: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian of the channel mean: (B,) from (B, 3, H, W).

    A ratio of two means of this (made over real) says how much fine texture is kept.
    """
    grey = images.float().mean(1, keepdim=True)
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return torch.nn.functional.conv2d(grey, kernel).flatten(1).var(1)


def active_units(mean: Tensor, threshold: float = 0.01) -> int:
    """Dimensions whose posterior mean varies over the data: from (N, D), N > 1.

    Burda, Grosse & Salakhutdinov 2016, section 5.2: the variance of the mean exceeds 0.01.
    """
    return int((mean.var(0) > threshold).sum())


def kl_nats(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL from N(0, I) of each image, (N,) in nats, from two (N, D)."""
    return kl_divergence(mean, logvar).sum(1)


def histogram(values: Tensor, bins: int = 60) -> dict[str, Any]:
    """`counts` in `bins` equal parts of the range from `low` to `high`, for JSON; of any shape.

    `sum` and `sum_squares` are those of the values themselves.
    """
    values = values.detach().flatten().double().cpu()
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values, bins, low, high)
    return {
        "low": low,
        "high": high,
        "sum": float(values.sum()),
        "sum_squares": float(values.square().sum()),
        "counts": counts.long().tolist(),
    }


def principal_plane(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Where latents (N, D) lie along the two directions in which they vary most.

    Returns places (N, 2) and each direction's share of the variance, (2,): zeros where there are
    fewer directions than two. Principal components, with signs such that nothing else decides
    them: the largest entry of each direction is positive.
    """
    deviation = (latents - latents.mean(0)).double().cpu()
    _, lengths, directions = torch.linalg.svd(deviation, full_matrices=False)
    count = min(2, len(lengths))
    chosen = directions[:count]
    signs = chosen.gather(1, chosen.abs().argmax(1, keepdim=True)).sign()
    variances = lengths.square()
    places, shares = torch.zeros(len(latents), 2), torch.zeros(2)
    places[:, :count] = (deviation @ (signs * chosen).T).float()
    shares[:count] = (variances / variances.sum().clamp_min(1e-12))[:count].float()
    return places, shares

"""How good pictures and latents are: pure functions, with their sources."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from facevae.losses import kl_divergence, mean_squared_error

_WEIGHTS = [math.exp(-(x**2) / (2 * 1.5**2)) for x in range(-5, 6)]
_GAUSSIAN = [weight / sum(_WEIGHTS) for weight in _WEIGHTS]


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
    values = values.detach().flatten().cpu().double()
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
    deviation = (latents - latents.mean(0)).cpu().double()
    _, lengths, directions = torch.linalg.svd(deviation, full_matrices=False)
    count = min(2, len(lengths))
    chosen = directions[:count]
    signs = chosen.gather(1, chosen.abs().argmax(1, keepdim=True)).sign()
    variances = lengths.square()
    places, shares = torch.zeros(len(latents), 2), torch.zeros(2)
    places[:, :count] = (deviation @ (signs * chosen).T).float()
    shares[:count] = (variances / variances.sum().clamp_min(1e-12))[:count].float()
    return places, shares


def ssim(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image, (B,), from two (B, 3, H, W) in [0, 1], H, W > 10.

    Wang et al. 2004: a Gaussian window of 11 × 11 with σ = 1.5, K1 = 0.01, K2 = 0.03; the mean
    over the windows that lie inside the image, and over the channels.
    """
    c1, c2 = 0.01**2, 0.03**2
    x, y = reconstructions.float(), images.float()
    mean_x, mean_y, xx, yy, xy = (weighted(part, _GAUSSIAN) for part in (x, y, x * x, y * y, x * y))
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(1)


def weighted(images: Tensor, window: Sequence[float]) -> Tensor:
    """Sums under a window along both axes, where it lies inside: (…, H − n + 1, W − n + 1).

    By shifted images: on a CPU several times as fast as a convolution of so few channels.
    """
    for axis in (-1, -2):
        length = images.shape[axis] - len(window) + 1
        total = window[0] * images.narrow(axis, 0, length)
        for start, weight in enumerate(window[1:], start=1):
            total.add_(images.narrow(axis, start, length), alpha=weight)
        images = total
    return images


def normal_distance(mean: Tensor, logvar: Tensor) -> float:
    """How far the aggregate of posteriors (N, D) is from N(0, I): 2-Wasserstein, of the moments.

    √(|μ|² + Σ (√λ − 1)²), μ and λ being the mean and the covariance's eigenvalues (Dowson &
    Landau 1982). No distribution with these moments is nearer (Gelbrich 1990).
    """
    mean, logvar = mean.cpu().double(), logvar.cpu().double()  # not every device has float64
    centre = mean.mean(0)
    deviation = mean - centre
    covariance = deviation.T @ deviation / len(mean) + logvar.exp().mean(0).diag()
    deviations = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt()
    return float((centre.square().sum() + (deviations - 1).square().sum()).sqrt())


def nearest(points: Tensor, others: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Distance (N,) of each point (N, D) to the nearest of `others` (M, D), and its row (N,)."""
    rows = torch.cat([torch.cdist(part, others).argmin(1) for part in points.split(chunk)])
    return (points - others[rows]).norm(dim=1), rows

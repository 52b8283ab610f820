"""Metrics of images and latents: pure functions, with references to the papers they come from."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from facevae.measures.losses import kl_divergence, mean_squared_error

_WEIGHTS = [math.exp(-(x**2) / (2 * 1.5**2)) for x in range(-5, 6)]
_GAUSSIAN = [weight / sum(_WEIGHTS) for weight in _WEIGHTS]


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (B,) in dB, from two (B, 3, H, W) in [0, 1]."""
    mse = mean_squared_error(reconstructions, images)
    return -10 * mse.clamp_min(1e-12).log10()


def sharpness(images: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian of the channel mean: (B,) from (B, 3, H, W).

    The ratio of its means, of generated over real images, measures how much fine texture is kept.
    """
    grey = images.float().mean(1, keepdim=True)
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return torch.nn.functional.conv2d(grey, kernel).flatten(1).var(1)


def active_units(mean: Tensor, threshold: float = 0.01) -> int:
    """Number of latent dimensions in use, from posterior means (N, D), N > 1.

    Those whose posterior mean has a variance over the data of more than 0.01 (Burda, Grosse &
    Salakhutdinov 2016, section 5.2).
    """
    return int((mean.var(0) > threshold).sum())


def kl_nats(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of each posterior from N(0, I), (N,) in nats, from two (N, D)."""
    return kl_divergence(mean, logvar).sum(1)


def histogram(values: Tensor, bins: int = 60) -> dict[str, Any]:
    """A histogram of values of any shape, as a JSON object.

    `counts` are those of `bins` equal bins between `low` and `high`, the least and the greatest
    value. `sum` and `sum_squares` are taken over the values themselves.
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
    """Coordinates of latents (N, D) along their first two principal components.

    Returns coordinates (N, 2) and each component's share of the variance (2,), with zeros for
    components that do not exist. Signs are fixed: the entry of each component that is largest in
    magnitude is positive.
    """
    centred = (latents - latents.mean(0)).cpu().double()
    _, singular_values, directions = torch.linalg.svd(centred, full_matrices=False)
    count = min(2, len(singular_values))
    chosen = directions[:count]
    signs = chosen.gather(1, chosen.abs().argmax(1, keepdim=True)).sign()
    variances = singular_values.square()
    coordinates, shares = torch.zeros(len(latents), 2), torch.zeros(2)
    coordinates[:, :count] = (centred @ (signs * chosen).T).float()
    shares[:count] = (variances / variances.sum().clamp_min(1e-12))[:count].float()
    return coordinates, shares


def ssim(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image, (B,), from two (B, 3, H, W) in [0, 1], H, W > 10.

    Wang et al. 2004: a Gaussian window of 11 × 11 with σ = 1.5, K1 = 0.01, K2 = 0.03. The mean is
    taken over all windows that lie inside the image, and over the channels.
    """
    c1, c2 = 0.01**2, 0.03**2
    x, y = reconstructions.float(), images.float()
    mean_x, mean_y, xx, yy, xy = (weighted(part, _GAUSSIAN) for part in (x, y, x * x, y * y, x * y))
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(1)


def weighted(images: Tensor, window: Sequence[float]) -> Tensor:
    """Correlation of images (…, H, W) with a separable window of n weights, without padding.

    Returns (…, H − n + 1, W − n + 1). It adds up shifted images, which on a CPU is several times
    as fast as a convolution with so few channels.
    """
    for axis in (-1, -2):
        length = images.shape[axis] - len(window) + 1
        total = window[0] * images.narrow(axis, 0, length)
        for start, weight in enumerate(window[1:], start=1):
            total.add_(images.narrow(axis, start, length), alpha=weight)
        images = total
    return images


def normal_distance(mean: Tensor, logvar: Tensor) -> float:
    """2-Wasserstein distance from N(0, I) of the Gaussian with the aggregate posterior's moments.

    √(|μ|² + Σ (√λ − 1)²) with the mean μ and the covariance's eigenvalues λ (Dowson & Landau 1982).
    It is a lower bound on the distance of any distribution with these moments (Gelbrich 1990).
    `mean` and `logvar` (N, D) are the posteriors.
    """
    mean, logvar = mean.cpu().double(), logvar.cpu().double()  # not every device has float64
    centre = mean.mean(0)
    centred = mean - centre
    covariance = centred.T @ centred / len(mean) + logvar.exp().mean(0).diag()
    deviations = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt()
    return float((centre.square().sum() + (deviations - 1).square().sum()).sqrt())


def nearest(points: Tensor, others: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Distance (N,) from each point (N, D) to the nearest of `others` (M, D), and its row (N,)."""
    rows = torch.cat([torch.cdist(part, others).argmin(1) for part in points.split(chunk)])
    return (points - others[rows]).norm(dim=1), rows

"""How good pictures and latents are: pure functions, with their sources."""

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

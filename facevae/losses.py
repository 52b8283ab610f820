"""The terms of the evidence lower bound, as pure functions, in nats an image."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# An 8-bit image is known to within half a level: the variance of that rounding is the least
# error variance that a likelihood of its pixels can claim.
MIN_MSE = 1 / (12 * 255**2)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, I)) of each dimension, in nats: (B, D) from (B, D) and (B, D).

    Kingma & Welling 2014, appendix B: ½ (μ² + σ² − log σ² − 1).
    """
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1)


def mean_squared_error(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Mean over pixels and channels of each image, (B,) from two (B, 3, H, W) in [0, 1]."""
    errors = torch.nn.functional.mse_loss(reconstructions.float(), images.float(), reduction="none")
    return errors.mean((1, 2, 3))


def weighted_reconstruction(mse: Tensor, r_loss_factor: float) -> Tensor:
    """r_loss_factor × MSE, a scalar: `mse` is a batch's, or that of each of its images (B,).

    The reconstruction term of the paper. It is the negative log-likelihood of a Gaussian whose
    variance is `dims / (2 × r_loss_factor)`, less a constant.
    """
    return r_loss_factor * mse.mean()


def calibrated_reconstruction(mse: Tensor, dims: int) -> Tensor:
    """dims/2 · log(MSE), less a constant, a scalar: `mse` is a batch's, or (B,) of its images.

    Rybkin, Daniilidis & Levine 2021 (σ-VAE), section 3.2: the Gaussian negative log-likelihood
    with the variance that is best for this batch. Its gradient is that of
    `weighted_reconstruction` with `calibrated_factor`.
    """
    return dims / 2 * mse.mean().clamp_min(MIN_MSE).log()


def calibrated_factor(mse: float, dims: int) -> float:
    """The r_loss_factor at which `weighted_reconstruction` has the calibrated gradient."""
    return dims / (2 * max(mse, MIN_MSE))


def implied_sigma(r_loss_factor: float, dims: int) -> float:
    """The standard deviation, in units of [0, 1] pixels, that an r_loss_factor amounts to."""
    return math.sqrt(dims / (2 * r_loss_factor))


def flow_matching(velocity: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
    """Mean squared error against the straight path's velocity, (B,) from three (B, D).

    Lipman et al. 2023, equation 23 with σ_min = 0: the target at (1 − t)·noise + t·latents is
    latents − noise.
    """
    return (velocity.float() - (latents - noise)).square().mean(1)


Mean = Callable[[Tensor], Tensor]
"""Over a batch, of one value an image (B,), or of so many logits an image (B, L): a scalar."""


def discriminator_loss(real: Tensor, made: Tensor, mean: Mean = torch.mean) -> Tensor:
    """Of logits (B, L) of real images and (M, L) of made ones, higher for real: a scalar.

    Goodfellow et al. 2014, equation 1: the logistic loss of telling them apart.
    """
    softplus = torch.nn.functional.softplus
    return mean(softplus(-real)) + mean(softplus(made))


def generator_loss(made: Tensor, mean: Mean = torch.mean) -> Tensor:
    """The non-saturating loss of logits (M, L) of made images (ibid., section 3): a scalar."""
    return mean(torch.nn.functional.softplus(-made))


def hinge(real: Tensor, made: Tensor, mean: Mean = torch.mean) -> Tensor:
    """Of logits (B, 1, h, w) of real images and of made ones, higher for real: a scalar.

    Lim & Ye 2017, equation 12: a loss of telling them apart that is content beyond a margin of 1.
    """
    relu = torch.nn.functional.relu
    return mean(relu(1 - real).mean((1, 2, 3))) + mean(relu(1 + made).mean((1, 2, 3)))


def gradient_penalty(logits: Tensor, images: Tensor, mean: Mean = torch.mean) -> Tensor:
    """R1: ½ the mean squared norm of the gradient of logits (B,) by real images: a scalar.

    Mescheder et al. 2018, equation 9, without its weight. `images` (B, 3, H, W) need a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * mean(gradient.square().flatten(1).sum(1))


def feature_matching(
    made: Sequence[Tensor], real: Sequence[Tensor], mean: Mean = torch.mean
) -> Tensor:
    """Mean over levels of the distance of features, each level in units of the real ones: a scalar.

    Wang et al. 2018 (pix2pixHD), equation 4; `made` and `real` have levels (B, C, H, W) alike.
    """

    def size(features: Tensor) -> Tensor:
        return mean(features.float().abs().flatten(1).mean(1))

    distances = [
        size(a.float() - b.float()) / size(b).clamp_min(1e-6)
        for a, b in zip(made, real, strict=True)
    ]
    return torch.stack(distances).mean()

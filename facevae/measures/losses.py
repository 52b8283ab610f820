"""Loss terms as pure functions. Those of the evidence lower bound are in nats an image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# An 8-bit image is known to half a level: the variance of that rounding is the smallest error
# variance that a likelihood of its pixels can claim.
MIN_MSE = 1 / (12 * 255**2)

Mean = Callable[[Tensor], Tensor]
"""Mean over a batch of one value an image (B,), or of L logits an image (B, L): a scalar."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the decoder's loss in the adversarial finish.

    The adversarial and projected ones are multiplied by the schedule's discriminator strengths.
    """

    pixel: float = 8.0  # log of the mean squared error, and what is measured in its units
    checkerboard: float = 20.0  # relative to a mean squared error, within the pixel term
    feature_matching: float = 3.0  # reconstructions against faces, in discriminator features
    adversarial: float = 1.0  # pixel discriminator of reconstructions
    adversarial_samples: float = 3.0  # pixel discriminator of samples
    projected: float = 0.1  # pretrained-feature discriminator of reconstructions
    projected_samples: float = 1.0  # pretrained-feature discriminator of samples
    perceptual: float = 8.0  # perceptual distance of reconstructions, if there is one


DEFAULT_WEIGHTS = LossWeights()


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
    """r_loss_factor × MSE, a scalar: `mse` is that of a batch, or of each of its images (B,).

    The reconstruction term of the paper. It is the negative log-likelihood of a Gaussian with
    variance `dims / (2 × r_loss_factor)`, up to a constant.
    """
    return r_loss_factor * mse.mean()


def calibrated_reconstruction(mse: Tensor, dims: int) -> Tensor:
    """dims/2 · log(MSE), a scalar: `mse` is that of a batch, or of each of its images (B,).

    Rybkin, Daniilidis & Levine 2021 (σ-VAE), section 3.2: up to a constant, the Gaussian negative
    log-likelihood with the optimal variance for this batch. Its gradient is that of
    `weighted_reconstruction` with `calibrated_factor`.
    """
    return dims / 2 * mse.mean().clamp_min(MIN_MSE).log()


def log_error(mse: Tensor, penalty: Tensor) -> Tensor:
    """log(MSE) plus a penalty in the units of the MSE, a scalar from scalars.

    The penalty is divided by the MSE, as the logarithm's gradient divides that of an error.
    """
    return mse.clamp_min(MIN_MSE).log() + penalty / mse.detach().clamp_min(MIN_MSE)


def calibrated_factor(mse: float, dims: int) -> float:
    """The r_loss_factor at which `weighted_reconstruction` has the calibrated gradient."""
    return dims / (2 * max(mse, MIN_MSE))


def implied_sigma(r_loss_factor: float, dims: int) -> float:
    """The Gaussian standard deviation that an r_loss_factor implies, for pixels in [0, 1]."""
    return math.sqrt(dims / (2 * r_loss_factor))


def flow_matching(velocity: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
    """Mean squared error against the straight path's velocity, (B,) from three (B, D).

    Lipman et al. 2023, equation 23 with σ_min = 0: the target at (1 − t)·noise + t·latents is
    latents − noise.
    """
    return (velocity.float() - (latents - noise)).square().mean(1)


def discriminator_loss(real: Tensor, made: Tensor, mean: Mean = torch.mean) -> Tensor:
    """Logistic loss of a discriminator, a scalar, from logits (B, L) of real and (M, L) of made.

    Logits are higher for real images. Goodfellow et al. 2014, equation 1.
    """
    softplus = torch.nn.functional.softplus
    return mean(softplus(-real)) + mean(softplus(made))


def generator_loss(made: Tensor, mean: Mean = torch.mean) -> Tensor:
    """Non-saturating loss of a generator, a scalar, from logits (M, L) of made images.

    Goodfellow et al. 2014, section 3.
    """
    return mean(torch.nn.functional.softplus(-made))


def hinge(real: Tensor, made: Tensor, mean: Mean = torch.mean) -> Tensor:
    """Hinge loss of a discriminator, a scalar, from logits (B, 1, h, w) of real and of made images.

    Logits are higher for real images; beyond a margin of 1 they add no loss. Lim & Ye 2017,
    equation 12.
    """
    relu = torch.nn.functional.relu
    return mean(relu(1 - real).mean((1, 2, 3))) + mean(relu(1 + made).mean((1, 2, 3)))


def gradient_penalty(logits: Tensor, images: Tensor, mean: Mean = torch.mean) -> Tensor:
    """R1: half the mean squared norm of the gradient of logits (B,) by real images, a scalar.

    Mescheder et al. 2018, equation 9, without its weight. `images` (B, 3, H, W) require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * mean(gradient.square().flatten(1).sum(1))


def feature_matching(
    made: Sequence[Tensor], real: Sequence[Tensor], mean: Mean = torch.mean
) -> Tensor:
    """Mean over levels of the L1 distance of features relative to the real ones' size, a scalar.

    Wang et al. 2018 (pix2pixHD), equation 4, here divided by each level's mean absolute real
    feature. `made` and `real` have levels (B, C, H, W) of equal shapes.
    """

    def mean_absolute(features: Tensor) -> Tensor:
        return mean(features.float().abs().flatten(1).mean(1))

    distances = [
        mean_absolute(a.float() - b.float()) / mean_absolute(b).clamp_min(1e-6)
        for a, b in zip(made, real, strict=True)
    ]
    return torch.stack(distances).mean()

"""Discriminators on the features of a network pretrained on photographs.

Sauer et al. 2021, "Projected GANs Converge Faster". The features are mixed at random across
channels and scales, so that a discriminator cannot ignore some of them, and a small network for
each level tells made images from faces. A discriminator of pixels has to learn from scratch what
skin, hair and eyes look like. This one knows that already, and asks for less that no photo has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from facevae.measures import losses
from facevae.networks.image_features import CHANNELS, STRIDE, load_image_features
from facevae.stages.critic import TrainableDiscriminator
from facevae.system.runtime import seeded, training_precision

_ENLARGED = (
    1.5  # factor on the size: faces then fill an image as objects do one of ImageNet at 224 px
)
_MIXED = (32, 64, 128, 256)  # channels of each level after mixing
_WIDTH = 128  # channels of the discriminators
_HALVINGS = (
    2,
    1,
    0,
    0,
)  # strided layers of each level's discriminator: fine levels have many pixels
_LEARNING_RATE = 2e-4


class Projection(nn.Module):
    """images (B, 3, S, S) in [0, 1] → mixed features of four levels, by fixed weights."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.features = load_image_features(device)
        with seeded(0):
            self.across_channels = nn.ModuleList(
                _random_convolution(a, b, 1) for a, b in zip(CHANNELS, _MIXED, strict=True)
            )
            self.across_scales = nn.ModuleList(
                _random_convolution(_MIXED[i + 1], _MIXED[i], 3) for i in range(3)
            )
        self.to(device, memory_format=torch.channels_last).requires_grad_(requires_grad=False)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels (B, C, H, W), the finest first, each including what coarser ones have found."""
        side = STRIDE * max(1, round(_ENLARGED * images.shape[-1] / STRIDE))
        larger = functional.interpolate(images, (side, side), mode="bilinear", antialias=False)
        pairs = zip(self.across_channels, self.features(larger), strict=True)
        levels = [mix(level) for mix, level in pairs]
        mixed = levels[-1:]
        for level, mix in zip(levels[-2::-1], list(self.across_scales)[::-1], strict=True):
            coarser = functional.interpolate(mix(mixed[0]), level.shape[-2:], mode="bilinear")
            mixed.insert(0, (level + coarser) / math.sqrt(2))
        return mixed


def _random_convolution(before: int, after: int, kernel: int) -> nn.Conv2d:
    """A convolution that mixes channels at random and preserves their scale."""
    mix = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(mix.weight, std=1 / math.sqrt(before * kernel**2))
    return mix


class ProjectedDiscriminator(nn.Module):
    """Levels of `Projection` → logits (B, 1, h, w) of each level.

    Spectral normalisation (Miyato et al. 2018) bounds its gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            _level_discriminator(channels, halvings)
            for channels, halvings in zip(_MIXED, _HALVINGS, strict=True)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Logits, higher for faces."""
        return [
            network(features).float() for network, features in zip(self.levels, levels, strict=True)
        ]


def _level_discriminator(channels: int, halvings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(2):
        kernel, stride = (4, 2) if i < halvings else (3, 1)
        convolution = nn.Conv2d(channels if i == 0 else _WIDTH, _WIDTH, kernel, stride, padding=1)
        layers += [spectral_norm(convolution), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(_WIDTH, 1, 3, padding=1)))


class ProjectedCritic(TrainableDiscriminator):
    """A `ProjectedDiscriminator` in training, on levels that `Projection` found."""

    network: ProjectedDiscriminator

    def __init__(self, device: torch.device, batch_size: int, *, records: bool) -> None:
        network = ProjectedDiscriminator().to(device)
        super().__init__(network, batch_size, _LEARNING_RATE, records=records)

    def update(self, real: list[Tensor], made: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One update on levels of real and made images: the loss, and whether it was sound."""
        self.network.requires_grad_()
        with training_precision(real[0].device):
            pairs = zip(self.network(real), self.network(made), strict=True)
        loss = torch.stack([losses.hinge(a, b, self.mean) for a, b in pairs]).mean()
        return loss, self.guard.step(loss)

    def generator_loss(self, made: list[Tensor]) -> Tensor:
        """The generator's loss on levels of made images, a scalar: the mean negative logit."""
        self.network.requires_grad_(requires_grad=False)
        with training_precision(made[0].device):
            logits = self.network(made)
        return -torch.stack([self.mean(level.mean((1, 2, 3))) for level in logits]).mean()


@dataclass(frozen=True)
class ProjectedResult:
    """Results of updating K critics, (K,) each.

    The generator's losses, of the updated critics, carry gradients to the images. `is_sound` says
    whether each update was taken.
    """

    discriminator_losses: Tensor
    generator_losses: Tensor
    is_sound: Tensor


def update_projected(
    critics: Sequence[ProjectedCritic], projection: Projection, real: Tensor, made: Sequence[Tensor]
) -> ProjectedResult:
    """Update critic i on real images and made[i], (B, 3, H, W) each, then apply it to made[i]."""
    with training_precision(real.device):
        with torch.no_grad():
            real_levels = projection(real)
        made_levels = [projection(images) for images in made]
    updates = [
        critic.update(real_levels, [level.detach() for level in levels])
        for critic, levels in zip(critics, made_levels, strict=True)
    ]
    generator_losses = [
        critic.generator_loss(levels) for critic, levels in zip(critics, made_levels, strict=True)
    ]
    discriminator_losses, is_sound = zip(*updates, strict=True)
    return ProjectedResult(
        torch.stack(discriminator_losses), torch.stack(generator_losses), torch.stack(is_sound)
    )

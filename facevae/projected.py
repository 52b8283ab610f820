"""Discriminators that see pictures as a network does that knows all kinds of photographs.

Sauer et al. 2021, "Projected GANs Converge Faster": its features are mixed at random, across
channels and levels, so that none can be left out of sight, and a small network a level tells what
is made from faces by them. Where a discriminator of its own has to learn from scratch what skin, hair
and eyes look like, this one knows it, and asks for less that no photograph has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from facevae import losses
from facevae.critic import Judge
from facevae.image_features import CHANNELS, STRIDE, load_image_features
from facevae.runtime import seeded, training_precision

_ENLARGED = 1.5  # times the size: faces fill a picture as ImageNet's objects do one of 224 px
_MIXED = (32, 64, 128, 256)  # channels of each level, mixed
_WIDTH = 128  # of the discriminators
_HALVINGS = (2, 1, 0, 0)  # of each level's discriminator: the finest levels have pixels to spare
_LEARNING_RATE = 2e-4


class Projection(nn.Module):
    """images (B, 3, S, S) in [0, 1] → features of four levels, mixed; it never learns."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.features = load_image_features(device)
        with seeded(0):
            self.across = nn.ModuleList(
                _random(a, b, 1) for a, b in zip(CHANNELS, _MIXED, strict=True)
            )
            self.down = nn.ModuleList(_random(_MIXED[i + 1], _MIXED[i], 3) for i in range(3))
        self.to(device, memory_format=torch.channels_last).requires_grad_(requires_grad=False)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels (B, C, H, W), the finest first, each with what coarser ones have found."""
        side = STRIDE * max(1, round(_ENLARGED * images.shape[-1] / STRIDE))
        larger = functional.interpolate(images, (side, side), mode="bilinear", antialias=False)
        levels = [mix(level) for mix, level in zip(self.across, self.features(larger), strict=True)]
        mixed = levels[-1:]
        for level, mix in zip(levels[-2::-1], list(self.down)[::-1], strict=True):
            coarser = functional.interpolate(mix(mixed[0]), level.shape[-2:], mode="bilinear")
            mixed.insert(0, (level + coarser) / math.sqrt(2))
        return mixed


def _random(before: int, after: int, kernel: int) -> nn.Conv2d:
    """A convolution that mixes channels at random and keeps their size."""
    mix = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(mix.weight, std=1 / math.sqrt(before * kernel**2))
    return mix


class ProjectedDiscriminator(nn.Module):
    """What `Projection` gives → logits (B, 1, h, w) of each level.

    Spectral norms (Miyato et al. 2018) keep them in check.
    """

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            _of_level(channels, halvings)
            for channels, halvings in zip(_MIXED, _HALVINGS, strict=True)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Higher for what is taken for a face."""
        return [
            network(features).float() for network, features in zip(self.levels, levels, strict=True)
        ]


def _of_level(channels: int, halvings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(2):
        kernel, stride = (4, 2) if i < halvings else (3, 1)
        convolution = nn.Conv2d(channels if i == 0 else _WIDTH, _WIDTH, kernel, stride, padding=1)
        layers += [spectral_norm(convolution), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(_WIDTH, 1, 3, padding=1)))


class ProjectedCritic(Judge):
    """A `ProjectedDiscriminator` in training. All that it is shown is of one batch of `batch_size`."""

    network: ProjectedDiscriminator

    def __init__(self, device: torch.device, batch_size: int, *, records: bool) -> None:
        network = ProjectedDiscriminator().to(device)
        super().__init__(network, batch_size, _LEARNING_RATE, records=records)

    def learn(self, real: list[Tensor], made: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One update, to tell what `Projection` gives of either: its loss, and whether it was sound."""
        self.network.requires_grad_()
        with training_precision(real[0].device):
            pairs = zip(self.network(real), self.network(made), strict=True)
        loss = torch.stack([losses.hinge(a, b, self.mean) for a, b in pairs]).mean()
        return loss, self.guard.step(loss)

    def judge(self, made: list[Tensor]) -> Tensor:
        """How little that is taken for what `Projection` gives of faces: a scalar."""
        self.network.requires_grad_(requires_grad=False)
        with training_precision(made[0].device):
            logits = self.network(made)
        return -torch.stack([self.mean(level.mean((1, 2, 3))) for level in logits]).mean()


@dataclass(frozen=True)
class Told:
    """What was told by features of K kinds of made pictures, (K,) each.

    `losses` are those of telling them, `verdicts` say how little they are taken for faces, and lead
    back to them, and `is_sound` is whether the updates were.
    """

    losses: Tensor
    verdicts: Tensor
    is_sound: Tensor


class ProjectedCritics(tuple[ProjectedCritic, ...]):
    """One for each kind of made pictures; all see by one `Projection`."""

    __slots__ = ()

    def tell(self, projection: Projection, real: Tensor, made: Sequence[Tensor]) -> Told:
        """Learn to tell each kind of made images (B, 3, H, W) from real ones, and judge them."""
        with training_precision(real.device):
            with torch.no_grad():
                faces = projection(real)
            seen = [projection(images) for images in made]
        learned = [
            critic.learn(faces, [level.detach() for level in levels])
            for critic, levels in zip(self, seen, strict=True)
        ]
        verdicts = [critic.judge(levels) for critic, levels in zip(self, seen, strict=True)]
        its_losses, is_sound = zip(*learned, strict=True)
        return Told(torch.stack(its_losses), torch.stack(verdicts), torch.stack(is_sound))

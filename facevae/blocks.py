"""Residual networks between pictures and features, for the models that the paper's is too small for.

He et al. 2016 (Identity Mappings): each block adds to what it is given, after normalising it. What
that costs lies in wide layers on few pixels: channels grow as pictures shrink, and at the full
size there is no layer at all, since a picture enters by a convolution of stride 2 and leaves by
one that makes its four neighbouring pixels at once (Shi et al. 2016, sub-pixel convolution).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHANNELS_A_GROUP = 16  # of GroupNorm: the best in Wu & He 2018, table 3


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the precision of what it is given.

    Autocast on CUDA would make float32 of it, and of all that follows up to the next convolution;
    the statistics are taken in float32 in any case.
    """

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, H, W) → (B, C, H, W)."""
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        if torch.is_grad_enabled() and weight.requires_grad and not features.requires_grad:
            # of channels-last features whose gradient nobody wants, torch's CPU backward crashes
            features = features.detach().requires_grad_()
        with torch.autocast(features.device.type, enabled=False):
            return functional.group_norm(features, self.num_groups, weight, bias, self.eps)


class Upsample(nn.Upsample):
    """The nearest pixels in the precision of what it is given, as `GroupNorm` and for its reason."""

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, H, W) → larger ones."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features)


class ResidualBlock(nn.Module):
    """features (B, C, H, W) → (B, C, H, W).

    GroupNorm (Wu & He 2018) in place of batch norm: a face does not depend on its neighbours, and
    averaged weights need no statistics of their own. One a block is as good as two, and faster.
    The last convolution begins at zero, so that the block begins as the identity (Goyal et al.
    2017, section 5.1).
    """

    LAST = "layers.4."  # begins the names of that convolution's parameters

    def __init__(self, channels: int, inside: int | None = None) -> None:
        """With as many channels `inside` as outside, or so many."""
        super().__init__()
        inside = inside or channels
        self.layers = nn.Sequential(
            GroupNorm(num_groups(channels), channels),
            nn.SiLU(),
            nn.Conv2d(channels, inside, kernel_size=3, padding=1),
            nn.SiLU(),
            nn.Conv2d(inside, channels, kernel_size=3, padding=1),
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """The features and what the layers find to add."""
        out: Tensor = features + self.layers(features)
        return out


def num_groups(channels: int) -> int:
    """Of GroupNorm: of `_CHANNELS_A_GROUP` channels each, where they can be."""
    return math.gcd(channels, max(1, channels // _CHANNELS_A_GROUP))


def residual_encoder(filters: Sequence[int], blocks: int) -> list[nn.Module]:
    """Layers from images (B, 3, H, W) to features (B, filters[-1], h, w), half as large a level."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *filters), filters, strict=False):
        layers.append(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1))
        layers += [ResidualBlock(after) for _ in range(blocks)]
    return [*layers, GroupNorm(num_groups(filters[-1]), filters[-1]), nn.SiLU()]


def residual_decoder(filters: Sequence[int], blocks: int) -> list[list[nn.Module]]:
    """Layers, by level, from features (B, filters[-1], h, w) to images (B, 3, H, W) before a sigmoid.

    Between two levels the channels change where pixels are fewest, before these are doubled.
    """
    levels: list[list[nn.Module]] = []
    inward = tuple(filters[::-1])
    for before, after in pairwise(inward):
        residual = [ResidualBlock(before) for _ in range(blocks)]
        to_next = nn.Conv2d(before, after, kernel_size=1)
        levels.append([*residual, to_next, Upsample(scale_factor=2)])
    residual = [ResidualBlock(inward[-1]) for _ in range(blocks)]
    norm = GroupNorm(num_groups(inward[-1]), inward[-1])
    to_pixels = nn.Conv2d(inward[-1], 3 * 2 * 2, kernel_size=3, padding=1)
    return [*levels, [*residual, norm, nn.SiLU(), to_pixels, nn.PixelShuffle(2)]]

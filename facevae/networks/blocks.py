"""Residual encoder and decoder layers, for models larger than the paper's.

He et al. 2016 (Identity Mappings): each block adds to its input, with normalisation before its
layers. Most of the cost is in wide layers on few pixels: channels grow as images shrink, and there
is no layer at full size, since images enter by a convolution of stride 2 and leave by one that
makes four neighbouring pixels at once (Shi et al. 2016, sub-pixel convolution).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHANNELS_PER_GROUP = 16  # of GroupNorm: the best in Wu & He 2018, table 3


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the precision of its input.

    Autocast on CUDA would convert it to float32, and with it all that follows up to the next
    convolution. Statistics are computed in float32 in any case.
    """

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, H, W) → (B, C, H, W)."""
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        if torch.is_grad_enabled() and weight.requires_grad and not features.requires_grad:
            # torch's CPU backward crashes on channels-last features that require no gradient
            features = features.detach().requires_grad_()
        with torch.autocast(features.device.type, enabled=False):
            return functional.group_norm(features, self.num_groups, weight, bias, self.eps)


class Upsample(nn.Upsample):
    """Nearest-neighbour upsampling in the precision of its input, for `GroupNorm`'s reason."""

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, H, W) → (B, C, scale · H, scale · W)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features)


class ResidualBlock(nn.Module):
    """A residual block, features (B, C, H, W) → (B, C, H, W).

    It has GroupNorm (Wu & He 2018) in place of batch norm: a face does not depend on the others in
    its batch, and averaged weights need no statistics of their own. One norm per block is as good
    as two, and faster. The last convolution starts at zero, so that the block starts as the
    identity (Goyal et al. 2017, section 5.1).
    """

    LAST = "layers.4."  # prefix of the names of the last convolution's parameters

    def __init__(self, channels: int, inside: int | None = None) -> None:
        """`inside` is the number of channels between the convolutions, by default `channels`."""
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
        """The features plus the output of the layers."""
        out: Tensor = features + self.layers(features)
        return out


def num_groups(channels: int) -> int:
    """Number of GroupNorm groups: of `_CHANNELS_PER_GROUP` channels each, if they divide evenly."""
    return math.gcd(channels, max(1, channels // _CHANNELS_PER_GROUP))


def residual_encoder(filters: Sequence[int], blocks: int) -> list[nn.Module]:
    """Layers from images (B, 3, H, W) to features (B, filters[-1], h, w); levels halve the side."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *filters), filters, strict=False):
        layers.append(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1))
        layers += [ResidualBlock(after) for _ in range(blocks)]
    return [*layers, GroupNorm(num_groups(filters[-1]), filters[-1]), nn.SiLU()]


def residual_decoder(filters: Sequence[int], blocks: int) -> list[list[nn.Module]]:
    """Layers of each level, from features (B, filters[-1], h, w) to logits of images (B, 3, H, W).

    Between two levels the channels change before the upsampling, where pixels are fewest.
    """
    levels: list[list[nn.Module]] = []
    inward = tuple(filters[::-1])
    for before, after in pairwise(inward):
        residual = [ResidualBlock(before) for _ in range(blocks)]
        change_width = nn.Conv2d(before, after, kernel_size=1)
        levels.append([*residual, change_width, Upsample(scale_factor=2)])
    residual = [ResidualBlock(inward[-1]) for _ in range(blocks)]
    norm = GroupNorm(num_groups(inward[-1]), inward[-1])
    to_pixels = nn.Conv2d(inward[-1], 3 * 2 * 2, kernel_size=3, padding=1)
    return [*levels, [*residual, norm, nn.SiLU(), to_pixels, nn.PixelShuffle(2)]]

"""What tells faces from what a decoder makes, and what it is shown of both."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from facevae import parallel
from facevae.augment import relit

_SMALLEST = 4  # side in pixels of the last features
_PATCH_LEVEL = 3  # of the features, those that see patches of 28 pixels
# times a pixel's difference from its neighbourhood, which is about 0.02 in faces, and the same of
# the image at half the size
_DETAIL, _COARSER_DETAIL = 32.0, 16.0


class Discriminator(nn.Module):
    """images (B, 3, size, size) in [0, 1] → logits (B, 1 + P), and features of each level.

    The first logit is of the whole image, the others are of patches, which tell texture sooner
    (Isola et al. 2017, section 3.2.2). Detail is given apart and amplified, as by the levels of a
    Laplacian pyramid (Denton et al. 2015), two of them: by pixels alone it takes thousands of steps
    until what is faint beside light and shade counts. Convolutions of stride 2 as in DCGAN (Radford
    et al. 2016), `width` channels at first and at most 8 × as many, without norms: what keeps it
    in check is R1.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        halvings = int(math.log2(size // _SMALLEST))
        widths = [9, *(min(width * 2**i, 8 * width) for i in range(halvings))]
        self.levels = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1)
            for before, after in pairwise(widths)
        )
        self.of_patches = nn.Conv2d(widths[_PATCH_LEVEL], 1, kernel_size=1)
        self.of_whole = nn.Linear(widths[-1] * _SMALLEST**2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and features."""
        coarser = functional.interpolate(detail(functional.avg_pool2d(images, 2)), scale_factor=2.0)
        parts = [2 * images - 1, _DETAIL * detail(images), _COARSER_DETAIL * coarser]
        hidden = torch.cat(parts, 1)
        features = []
        for level in self.levels:
            hidden = functional.leaky_relu(level(hidden), 0.2)
            features.append(hidden)
        of_patches = self.of_patches(features[_PATCH_LEVEL - 1])
        logits = torch.cat([self.of_whole(hidden.flatten(1)), of_patches.flatten(1)], 1)
        return logits.float(), features


def detail(images: Tensor) -> Tensor:
    """What sets each pixel off from the 3 × 3 about it: images (B, 3, H, W) → (B, 3, H, W).

    Sums of shifted images take a third of the time of `avg_pool2d` or less, and are not
    rounded to bfloat16 as a convolution's are.
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    columns = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return images - (columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]) / 9


def checkerboard_energy(images: Tensor) -> Tensor:
    """Of a pattern that is the same in every second pixel: images (B, 3, H, W) → (B,).

    Where four pixels are made at once, their biases make texture that costs nothing and no photo
    has (Odena et al. 2016), and a discriminator is slow to tell it from texture. It is the mean
    square of what the detail of each of the four is, over squares of up to 16 pixels.
    """
    of_four = functional.pixel_unshuffle(detail(images), 2)
    return functional.avg_pool2d(of_four, min(8, of_four.shape[-1])).square().mean((1, 2, 3))


def of_images(values: Tensor) -> Tensor:
    """Of the whole image and of its patches (B, 1 + P), each kind counting half: (B,)."""
    return (values[:, 0] + values[:, 1:].mean(1)) / 2


def steepness(logits: Tensor) -> Tensor:
    """Of logits (B, 1 + P), what R1 keeps from being steep: (B,).

    Patches overlap little, so that the sum over them divided by the root of their number is as
    steep as one of them, and the whole and they together as one of the two.
    """
    whole, patches = logits[:, 0], logits[:, 1:]
    return (whole + patches.sum(1) / math.sqrt(patches.shape[1])) / math.sqrt(2)


@dataclass(frozen=True)
class Augmentation:
    """Light changes of colour and place, alike for all that goes through it in a step.

    Zhao et al. 2020: what the discriminator sees is augmented, real or made, so that it does not
    learn its few faces by heart. `levels` (3, B, 1, 1, 1) are what is added to each image's
    brightness, and to 1 as factors of its contrast and saturation; `moves` (2,) are how far all are
    moved down and to the right, from 0 to twice `_reach`, which is half way. Tensors alone say what
    is done, so that it can be recorded.
    """

    levels: Tensor
    moves: Tensor

    @classmethod
    def drawn(cls, count: int, size: int, draw: torch.Generator) -> Self:
        """For a batch of `count` images of `size`, of which each process has its share.

        Brightness changes by up to ±.1, contrast and saturation by up to a quarter, an image each;
        all are moved by up to a sixteenth.
        """
        uniform = 2 * torch.rand(3, count, 1, 1, 1, generator=draw) - 1
        most = torch.tensor([0.1, 0.25, 0.25]).view(3, 1, 1, 1, 1)
        moves = torch.randint(2 * _reach(size) + 1, (2,), generator=draw)
        return cls(uniform[:, parallel.share(count)] * most, moves)

    def __call__(self, images: Tensor) -> Tensor:
        """images (B, 3, size, size) → (B, 3, size, size), with gradients."""
        brightness, contrast, saturation = self.levels
        images = relit(images, brightness, 1 + contrast, 1 + saturation)
        size = images.shape[-1]
        padded = functional.pad(images, (_reach(size),) * 4)
        rows, columns = torch.arange(size, device=images.device) + self.moves[:, None]
        return padded.index_select(2, rows).index_select(3, columns)


def _reach(size: int) -> int:
    """By how many pixels images of `size` are moved at most."""
    return size // 16

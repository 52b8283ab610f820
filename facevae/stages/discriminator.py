"""The discriminator of pixels, and the augmentation of what it sees."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from facevae.data.augment import adjust_colours
from facevae.system import parallel

_SMALLEST = 4  # side in pixels of the last features
_PATCH_LEVEL = 3  # the level of features whose places see patches of 28 pixels
# Gains of a pixel's difference from its neighbourhood, which is about 0.02 in faces, and of the
# same in the image at half the size.
_DETAIL, _COARSER_DETAIL = 32.0, 16.0


class Discriminator(nn.Module):
    """images (B, 3, size, size) in [0, 1] → logits (B, 1 + P), and features of each level.

    The first logit is of the whole image, the others are of patches, which learn texture sooner
    (Isola et al. 2017, section 3.2.2). Two levels of detail, as in a Laplacian pyramid (Denton et
    al. 2015), are amplified and given as extra channels: from pixels alone it takes thousands of
    steps until detail that is faint beside light and shade has an effect. Convolutions have stride
    2 as in DCGAN (Radford et al. 2016), `width` channels at first and at most 8 × as many. There
    are no norms: R1 regularises the network.
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
        """Logits (B, 1 + P), higher for faces, and features."""
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
    """Difference of each pixel from the mean of the 3 × 3 about it: (B, 3, H, W) → (B, 3, H, W).

    Sums of shifted images take at most a third of the time of `avg_pool2d`, and are not rounded to
    bfloat16 as a convolution's are.
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    columns = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return images - (columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]) / 9


def checkerboard_energy(images: Tensor) -> Tensor:
    """Energy of a pattern that repeats every second pixel: images (B, 3, H, W) → (B,).

    Where four pixels are made at once, their biases make texture that costs nothing and that no
    photo has (Odena et al. 2016), and a discriminator is slow to tell it from real texture. The
    energy is the mean square of the detail of each of the four pixels, averaged over squares of up
    to 16 pixels.
    """
    phases = functional.pixel_unshuffle(detail(images), 2)
    return functional.avg_pool2d(phases, min(8, phases.shape[-1])).square().mean((1, 2, 3))


def mean_logit(logits: Tensor) -> Tensor:
    """Mean of the whole image's value and the mean of its patches': (B, 1 + P) → (B,)."""
    return (logits[:, 0] + logits[:, 1:].mean(1)) / 2


def penalty_logit(logits: Tensor) -> Tensor:
    """The combination of logits whose gradient R1 penalises: (B, 1 + P) → (B,).

    Patches overlap little, so that the sum over them divided by the root of their number has a
    gradient as large as that of one of them. The same goes for the whole image and the patches.
    """
    whole, patches = logits[:, 0], logits[:, 1:]
    return (whole + patches.sum(1) / math.sqrt(patches.shape[1])) / math.sqrt(2)


@dataclass(frozen=True)
class Augmentation:
    """Light changes of colour and place, the same at every call.

    Zhao et al. 2020: the discriminator sees real and made images augmented, so that it does not
    memorise its few faces. `colours` (3, B, 1, 1, 1) are added to each image's brightness, and to 1
    as factors of its contrast and saturation. `shifts` (2,) move all images vertically and
    horizontally; they range from 0 to twice `_max_shift`, and the middle is no shift. Tensors hold
    everything, so that it can be recorded.
    """

    colours: Tensor
    shifts: Tensor

    @classmethod
    def sample(cls, count: int, size: int, rng: torch.Generator) -> Self:
        """Draw one for a batch of `count` images of side `size`, as this process's share.

        Brightness changes by up to ±0.1, contrast and saturation by up to a quarter, independently
        for each image; all images are shifted by up to a sixteenth of the side.
        """
        uniform = 2 * torch.rand(3, count, 1, 1, 1, generator=rng) - 1
        bounds = torch.tensor([0.1, 0.25, 0.25]).view(3, 1, 1, 1, 1)
        shifts = torch.randint(2 * _max_shift(size) + 1, (2,), generator=rng)
        return cls(uniform[:, parallel.share(count)] * bounds, shifts)

    @classmethod
    def sample_stacked(
        cls, num: int, count: int, size: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Stacked `colours` (num, 3, B, 1, 1, 1) and `shifts` (num, 2) of `num` augmentations."""
        augmentations = [cls.sample(count, size, rng) for _ in range(num)]
        colours = torch.stack([augmentation.colours for augmentation in augmentations])
        return colours, torch.stack([augmentation.shifts for augmentation in augmentations])

    def __call__(self, images: Tensor) -> Tensor:
        """images (B, 3, size, size) → (B, 3, size, size), with gradients."""
        brightness, contrast, saturation = self.colours
        images = adjust_colours(images, brightness, 1 + contrast, 1 + saturation)
        size = images.shape[-1]
        padded = functional.pad(images, (_max_shift(size),) * 4)
        rows, columns = torch.arange(size, device=images.device) + self.shifts[:, None]
        return padded.index_select(2, rows).index_select(3, columns)


def _max_shift(size: int) -> int:
    """Pixels by which images of side `size` are shifted at most."""
    return size // 16

"""The texture of a finished decoder: a second version of its finest levels, which invents detail.

It starts as a copy of the decoder's own levels, and with additional layers that add nothing, so that
weights can be interpolated between the two versions (as in Wang et al. 2018, ESRGAN, section 3.4).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facevae.networks.blocks import ResidualBlock
from facevae.system.runtime import Stream, generator, seeded

TEXTURED = "decoder.textured."  # prefix of the texture's tensors in a VAE
_NUM_NOISES = 8  # channels of noise at each level
_NUM_BLOCKS = 2  # residual blocks at each level
_MENDED_BY = 16  # inner channels of the blocks that correct coarser levels


class Texture(nn.Module):
    """A second version of a decoder's finest levels, with blocks that correct coarser levels.

    It maps the input of the decoder's first level, features (B, C, H, W), to images
    (B, 3, size, size). Fixed noise is added before each of the finest levels: from uniform features,
    such as a plain wall's, convolutions alone could only make repeating patterns (Karras et al.
    2019, section 3.2). The weight of the noise in each channel is learned, and starts at 0.
    Residual blocks, which add nothing at first, give each level more capacity.

    The coarser levels are shared with the plain decoder. Narrow residual blocks before the last of
    them, which also add nothing at first, correct what is too large for the finest levels.
    """

    def __init__(
        self,
        levels: Sequence[Sequence[nn.Module]],
        widths: Sequence[int],
        mended: Sequence[int],
        size: int,
    ) -> None:
        """Copy the finest `levels`.

        `widths` are the channels that each level starts with; the last one starts at half of `size`.
        `mended` are those of the coarser levels to correct.
        """
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(*copy.deepcopy(level)) for level in levels)
        grains = [nn.Conv2d(_NUM_NOISES, width, kernel_size=1, bias=False) for width in widths]
        self.grains, self._widths, self._mended = nn.ModuleList(grains), widths, mended
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(_NUM_BLOCKS))) for width in widths
        )
        self.mends = nn.ModuleList(ResidualBlock(width, _MENDED_BY) for width in mended)
        for i, grain in enumerate(grains):
            nn.init.zeros_(grain.weight)
            side = size >> (len(levels) - i)
            # drawn on the CPU: on the meta device, this would import modules for two seconds
            rng = generator(0, Stream.TEXTURE_NOISE, i)
            noise = torch.randn(1, _NUM_NOISES, side, side, generator=rng, device="cpu")
            self.register_buffer(f"noise{i}", noise)

    def begin_blocks(self, first: int) -> None:
        """Initialise the blocks of each level from index `first` on; new blocks add nothing."""
        with seeded(0):
            for blocks, width in zip(self.blocks, self._widths, strict=True):
                assert isinstance(blocks, nn.Sequential)  # noqa: S101 - as built in __init__
                for i in range(first, len(blocks)):
                    blocks[i] = ResidualBlock(width)

    def begin_mends(self) -> None:
        """Initialise the blocks that correct coarser levels; new blocks add nothing."""
        with seeded(0):
            for i, width in enumerate(self._mended):
                self.mends[i] = ResidualBlock(width, _MENDED_BY)

    def forward(self, features: Tensor, coarse: Sequence[Sequence[nn.Module]]) -> Tensor:
        """Images from the input of the `coarse` levels, which are given by their layers."""
        for i, layers in enumerate(coarse, start=len(self.mends) - len(coarse)):
            if i >= 0:
                features = self.mends[i](features)
            for layer in layers:
                features = layer(features)
        parts = zip(self.grains, self.blocks, self.levels, strict=True)
        for i, (grain, blocks, level) in enumerate(parts):
            noise = self.get_buffer(f"noise{i}").to(features.dtype)
            features = level(blocks(features + grain(noise)))
        return features

    def part_of(self, texture: float, plain: Sequence[Sequence[nn.Module]]) -> dict[str, Tensor]:
        """Parameters by name, interpolated by `texture` from the plain levels (0) to this texture (1).

        Layers that the plain levels lack are interpolated from layers that add nothing.
        """
        starts = {
            f"levels.{i}.{name}": parameter
            for i, level in enumerate(plain)
            for name, parameter in nn.Sequential(*level).named_parameters()
        }
        inner = {
            f"{path}.{name}": parameter
            for path, block in self.named_modules()
            if isinstance(block, ResidualBlock) and not path.startswith("levels.")
            for name, parameter in block.named_parameters()
            if not name.startswith(ResidualBlock.LAST)
        }
        # only the last layer of a block grows from zero, and with it what the block adds
        starts |= inner
        ends = self.named_parameters()
        return {name: starts.get(name, torch.zeros_like(p)).lerp(p, texture) for name, p in ends}

"""What a finished decoder makes up for samples: its finest levels once more, and what mends others.

They began as a copy of the decoder's own, and as nothing, so that there is a way to them by the
weights (Wang et al. 2018, ESRGAN, section 3.4, interpolate networks so).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facevae.blocks import ResidualBlock
from facevae.runtime import generator, seeded

TEXTURED = "decoder.textured."  # begins the names of a finished VAE's texture
_NUM_NOISES, _NOISE = 8, 7  # of each level, and what a generator's numbers are for
_NUM_BLOCKS = 2  # of each level
_MENDED_BY = 16  # channels inside of what mends a level before


class Texture(nn.Module):
    """A decoder's finest levels once more, and blocks that mend those before.

    From what goes into its first level, features (B, C, H, W), to images (B, 3, size, size). Before
    each of the finest levels there is noise, always the same: of a plain wall's features, which are alike
    everywhere, convolutions alone could make no grain but what repeats (Karras et al. 2019,
    section 3.2). How much of it goes into a channel is learned, and none at first. Residual
    blocks, which add nothing at first, make more of both than the level's own layers can.

    The levels before stay the decoder's own; narrow blocks before the last of them, which add
    nothing at first either, mend what is too large to be mended in the finest ones.
    """

    def __init__(
        self,
        levels: Sequence[Sequence[nn.Module]],
        widths: Sequence[int],
        mended: Sequence[int],
        size: int,
    ) -> None:
        """The levels begin with so many channels each, the last of them at half of `size`.

        Those before them that are mended begin with `mended` channels each.
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
            # drawn on the CPU: on the meta device it would cost two seconds of imports
            draw = generator(0, _NOISE, i)
            noise = torch.randn(1, _NUM_NOISES, side, side, generator=draw, device="cpu")
            self.register_buffer(f"noise{i}", noise)

    def begin_blocks(self, first: int) -> None:
        """Put new blocks, which add nothing, in the places from `first` on of each level."""
        with seeded(0):
            for blocks, width in zip(self.blocks, self._widths, strict=True):
                assert isinstance(blocks, nn.Sequential)  # noqa: S101 - as they were made
                for i in range(first, len(blocks)):
                    blocks[i] = ResidualBlock(width)

    def begin_mends(self) -> None:
        """Put new blocks, which add nothing, before the levels that are mended."""
        with seeded(0):
            for i, width in enumerate(self._mended):
                self.mends[i] = ResidualBlock(width, _MENDED_BY)

    def forward(self, features: Tensor, coarse: Sequence[Sequence[nn.Module]]) -> Tensor:
        """Images, through a sigmoid, from what goes into the `coarse` levels, the layers of each."""
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
        """Parameters by name, `texture` of the way from those of the plain levels to these.

        Of what the plain levels have not, the way begins where it adds nothing.
        """
        starts = {
            f"levels.{i}.{name}": parameter
            for i, level in enumerate(plain)
            for name, parameter in nn.Sequential(*level).named_parameters()
        }
        within = {
            f"{path}.{name}": parameter
            for path, block in self.named_modules()
            if isinstance(block, ResidualBlock) and not path.startswith("levels.")
            for name, parameter in block.named_parameters()
            if not name.startswith(ResidualBlock.LAST)
        }
        starts |= within  # it is what they add that grows
        ends = self.named_parameters()
        return {name: starts.get(name, torch.zeros_like(p)).lerp(p, texture) for name, p in ends}

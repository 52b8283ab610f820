"""The sliced Wasserstein distance between sets of images, at each level of detail.

Karras et al. 2018 (Progressive Growing of GANs), section 5: 7 × 7 patches of the levels of a
Laplacian pyramid are compared as distributions. Here the patches are taken at 64 places, the same
in all images, and both sets are standardised by the real set's channel means and deviations.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facevae.measures.metrics import weighted
from facevae.system.runtime import Stream, full_precision, generator

MAX_IMAGES = 2000  # of a set: the distance falls with their number, so comparisons use this many
_SMALLEST = 16  # side in pixels of the coarsest level
_PATCH, _NUM_PLACES, _NUM_DIRECTIONS = 7, 64, 128
_BINOMIAL = tuple(w / 16 for w in (1, 4, 6, 4, 1))

Projections = npt.NDArray[np.float32]


def level_sizes(size: int) -> list[int]:
    """Sides in pixels of the pyramid's levels, the finest first: 128 → [128, 64, 32, 16]."""
    return [size, *level_sizes(size // 2)] if size > _SMALLEST else [size]


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Bands of detail (B, 3, side, side), the finest first, and the coarsest image last.

    Burt & Adelson 1983, with their 5-tap binomial kernel.
    """
    levels = []
    for _ in level_sizes(images.shape[-1])[1:]:
        coarser = _smooth(images)[..., ::2, ::2]
        spread = torch.zeros_like(images)
        spread[..., ::2, ::2] = 4 * coarser
        levels.append(images - _smooth(spread))
        images = coarser
    return [*levels, images]


def _smooth(images: Tensor) -> Tensor:
    """Images smoothed by the binomial kernel, mirrored at the edges: the shape stays the same."""
    return weighted(torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect"), _BINOMIAL)


@dataclass(frozen=True)
class _Level:
    """Places of the patches of a level, their standardisation and their projection."""

    rows: Tensor  # (places, 7, 7)
    columns: Tensor  # (places, 7, 7)
    directions: Tensor  # (147, directions), columns of length 1
    mean: Tensor  # (3, 1, 1)
    deviation: Tensor  # (3, 1, 1)

    def project(self, patches: Tensor) -> Projections:
        """Projections (directions, P) of patches (P, 3, 7, 7)."""
        standardised = (patches - self.mean) / self.deviation
        return (self.directions.T @ standardised.flatten(1).T).cpu().numpy()


def _patches(band: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Patches (B · places, 3, 7, 7) of a band (B, 3, H, W)."""
    return band[:, :, rows, columns].transpose(1, 2).flatten(0, 1)


class SlicedWasserstein:
    """Sliced Wasserstein distances of sets of images from one real set."""

    def __init__(self, real: Iterable[Tensor], size: int, seed: int = 0) -> None:
        """`real` are batches (B, 3, size, size) in [0, 1], read once."""
        self.sizes = level_sizes(size)
        places = [_draw_places(side, generator(seed, Stream.PATCHES, side)) for side in self.sizes]
        patch_lists: list[list[Tensor]] = [[] for _ in self.sizes]
        with full_precision():
            for images in real:
                bands = laplacian_pyramid(images)
                for parts, band, (rows, columns, _) in zip(patch_lists, bands, places, strict=True):
                    parts.append(_patches(band, rows, columns))
            self.num_images = sum(map(len, patch_lists[0])) // _NUM_PLACES
            self._levels, self._real = [], []
            for parts, (rows, columns, directions) in zip(patch_lists, places, strict=True):
                patches = torch.cat(parts)
                parts.clear()  # the next level needs the memory
                mean = patches.mean((0, 2, 3))
                deviation = patches.var((0, 2, 3), unbiased=False).sqrt().clamp_min(1e-6)
                statistics = mean.view(3, 1, 1), deviation.view(3, 1, 1)
                level = _Level(rows, columns, directions.to(patches.device), *statistics)
                self._levels.append(level)
                self._real.append(_sorted(level.project(patches)))

    def __call__(self, made: Iterable[Tensor]) -> dict[str, float]:
        """The distance × 1000 at each level, by its side in pixels.

        `made` are as many images as the real ones, in batches (B, 3, size, size) in [0, 1].
        """
        shape = (_NUM_DIRECTIONS, self.num_images * _NUM_PLACES)
        projections = [np.empty(shape, np.float32) for _ in self._levels]
        done = 0
        with full_precision():
            for images in made:
                start, done = done, done + len(images) * _NUM_PLACES
                bands = laplacian_pyramid(images)
                for projected, level, band in zip(projections, self._levels, bands, strict=True):
                    patches = _patches(band, level.rows, level.columns)
                    projected[:, start:done] = level.project(patches)
        assert done == shape[1], "as many images as there are real ones"  # noqa: S101 - for callers
        distances = [
            float(np.abs(_sorted(projected) - real).mean(dtype=np.float64))
            for projected, real in zip(projections, self._real, strict=True)
        ]
        return {str(s): 1000 * d for s, d in zip(self.sizes, distances, strict=True)}


def _draw_places(side: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random rows and columns (places, 7, 7) of patches, and unit directions (147, directions)."""
    corners = torch.randint(side - _PATCH + 1, (2, _NUM_PLACES, 1, 1), generator=rng)
    steps = torch.arange(_PATCH)
    rows, columns = torch.broadcast_tensors(corners[0] + steps[:, None], corners[1] + steps)
    directions = torch.randn(3 * _PATCH * _PATCH, _NUM_DIRECTIONS, generator=rng)
    return rows, columns, directions / directions.norm(dim=0)


def _sorted(projections: Projections) -> Projections:
    projections.sort(axis=1)  # in place; numpy's sort is twenty times as fast as torch's here
    return projections

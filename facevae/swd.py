"""The sliced Wasserstein distance between sets of images, a level of detail at a time.

Karras et al. 2018 (Progressive Growing of GANs), section 5: 7 × 7 patches of the levels of a
Laplacian pyramid are compared as distributions. Here the patches lie at 64 places that all images
share, and both sets are standardised by the real one's channel means and deviations.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facevae.metrics import weighted
from facevae.runtime import full_precision, generator

MAX_IMAGES = 2000  # the distance falls with their number, so all that can have it are this many
_SMALLEST = 16  # side in pixels of the coarsest level
_PATCH, _NUM_PLACES, _NUM_DIRECTIONS = 7, 64, 128
_BINOMIAL = tuple(w / 16 for w in (1, 4, 6, 4, 1))
_DRAW = 5  # what the generator's numbers are for

Projections = npt.NDArray[np.float32]


def level_sizes(size: int) -> list[int]:
    """Sides in pixels of the pyramid's levels, the finest first: 128 → [128, 64, 32, 16]."""
    return [size, *level_sizes(size // 2)] if size > _SMALLEST else [size]


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """What each level adds to the next coarser one, and that one last: (B, 3, size, size) each.

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
    """(B, 3, side, side) from the same, mirrored at the edges."""
    return weighted(torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect"), _BINOMIAL)


@dataclass(frozen=True)
class _Level:
    """Where patches are taken, how they are standardised, and on what they are projected."""

    rows: Tensor  # (places, 7, 7)
    columns: Tensor
    directions: Tensor  # (147, directions), unit columns
    mean: Tensor  # (3, 1, 1)
    deviation: Tensor

    def project(self, patches: Tensor) -> Projections:
        """Projections (directions, P) of patches (P, 3, 7, 7)."""
        standardised = (patches - self.mean) / self.deviation
        return (self.directions.T @ standardised.flatten(1).T).cpu().numpy()


def _patches(band: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B · places, 3, 7, 7) from (B, 3, H, W)."""
    return band[:, :, rows, columns].transpose(1, 2).flatten(0, 1)


class SlicedWasserstein:
    """Distances of sets of images from one real set, × 1000, by the side of the level."""

    def __init__(self, real: Iterable[Tensor], size: int, seed: int = 0) -> None:
        """`real` are batches (B, 3, size, size) in [0, 1]; they are gone through once."""
        self.sizes = level_sizes(size)
        places = [_places(side, generator(seed, _DRAW, side)) for side in self.sizes]
        found: list[list[Tensor]] = [[] for _ in self.sizes]
        with full_precision():
            for images in real:
                bands = laplacian_pyramid(images)
                for parts, band, place in zip(found, bands, places, strict=True):
                    parts.append(_patches(band, *place[:2]))
            self.num_images = sum(map(len, found[0])) // _NUM_PLACES
            self._levels, self._real = [], []
            for parts, place in zip(found, places, strict=True):
                patches = torch.cat(parts)
                parts.clear()  # the next level needs the memory
                mean = patches.mean((0, 2, 3))
                deviation = patches.var((0, 2, 3), unbiased=False).sqrt().clamp_min(1e-6)
                per_channel = (mean.view(3, 1, 1), deviation.view(3, 1, 1))
                rows, columns, directions = place
                level = _Level(rows, columns, directions.to(patches.device), *per_channel)
                self._levels.append(level)
                self._real.append(_sorted(level.project(patches)))

    def __call__(self, made: Iterable[Tensor]) -> dict[str, float]:
        """The distance of as many images, given in batches like the real ones, at each level."""
        shape = (_NUM_DIRECTIONS, self.num_images * _NUM_PLACES)
        projections = [np.empty(shape, np.float32) for _ in self._levels]
        done = 0
        with full_precision():
            for images in made:
                begin, done = done, done + len(images) * _NUM_PLACES
                bands = laplacian_pyramid(images)
                for filled, level, band in zip(projections, self._levels, bands, strict=True):
                    patches = _patches(band, level.rows, level.columns)
                    filled[:, begin:done] = level.project(patches)
        assert done == shape[1], "as many images as there are real ones"  # noqa: S101 - the caller's part
        distances = [
            float(np.abs(_sorted(filled) - real).mean(dtype=np.float64))
            for filled, real in zip(projections, self._real, strict=True)
        ]
        return {str(s): 1000 * d for s, d in zip(self.sizes, distances, strict=True)}


def _places(side: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns (places, 7, 7) of patches within `side`, and directions (147, directions)."""
    corners = torch.randint(side - _PATCH + 1, (2, _NUM_PLACES, 1, 1), generator=draw)
    steps = torch.arange(_PATCH)
    rows, columns = torch.broadcast_tensors(corners[0] + steps[:, None], corners[1] + steps)
    directions = torch.randn(3 * _PATCH * _PATCH, _NUM_DIRECTIONS, generator=draw)
    return rows, columns, directions / directions.norm(dim=0)


def _sorted(projections: Projections) -> Projections:
    projections.sort(axis=1)  # in place; numpy's is twenty times as fast as torch's here
    return projections

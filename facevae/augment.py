"""Faces changed a little in place and light, and by how much: more of each for a prior to learn of.

As in Karras et al. 2020 (Training Generative Adversarial Networks with Limited Data) they are
changed; as in Karras et al. 2022, section 5, what learns of them is told how, so that it can be
asked for faces that are as they were.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

NUM_CHANGES = 7
NUM_CHANGED = 4  # times that each training face is changed for a flow, in another way each
# what one of each change is: of the side, moved right and down; in the logarithm of the size;
# turned; brighter; in the logarithms of contrast and of saturation
_SHIFT, _ZOOM, _TURN = 0.0225, 0.05, math.radians(4)
_BRIGHTNESS, _CONTRAST, _SATURATION = 0.07, 0.15, 0.3
_MOST = 2.5  # of each change
_SHARE = 0.6  # of faces that are moved, and of those whose light is changed


def draw_changes(count: int, draw: torch.Generator) -> Tensor:
    """Changes (count, NUM_CHANGES), standard normal but for those that are left out, which are 0."""
    chosen = torch.rand(count, 2, generator=draw) < _SHARE
    chosen[:, 0] |= ~chosen.any(1)  # no face is left as it is
    counts = torch.tensor([4, NUM_CHANGES - 4])
    normal = torch.randn(count, NUM_CHANGES, generator=draw).clamp(-_MOST, _MOST)
    return normal * chosen.repeat_interleave(counts, dim=1)


def change(images: Tensor, changes: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], each changed by its row of changes (B, NUM_CHANGES).

    What comes in from beyond the edges is mirrored.
    """
    moved = torch.where(_each(changes[:, :4].any(1)), _move(images, changes[:, :4]), images)
    brightness, contrast, saturation = (_each(c) for c in changes[:, 4:].unbind(1))
    factors = (_CONTRAST * contrast).exp(), (_SATURATION * saturation).exp()
    return relit(moved, _BRIGHTNESS * brightness, *factors).clamp(0, 1)


def relit(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Images (B, 3, H, W), colours and then light times factors, and brightness added, (B, 1, 1, 1)."""
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    level = images.mean((1, 2, 3), keepdim=True)
    return level + (images - level) * contrast + brightness


def _move(images: Tensor, changes: Tensor) -> Tensor:
    """Move, zoom and turn images (B, 3, H, W) by changes (B, 4)."""
    across, down, zoom, turn = changes.unbind(1)
    # where each place comes from, the image being from -1 to 1
    cosine, sine = (f(_TURN * turn) / (_ZOOM * zoom).exp() for f in (torch.cos, torch.sin))
    rows = [[cosine, -sine, -2 * _SHIFT * across], [sine, cosine, -2 * _SHIFT * down]]
    origin = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = functional.affine_grid(origin, list(images.shape), align_corners=False)
    # MPS has no such sampling in all of torch's releases
    where = torch.device("cpu") if images.device.type == "mps" else images.device
    moved = functional.grid_sample(
        *(images.to(where), grid.to(where)),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    return moved.to(images.device)


def _each(values: Tensor) -> Tensor:
    """Values (B,) as they go with images: (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)

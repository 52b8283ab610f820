"""Small random changes of faces in geometry and colour, for priors and classifiers to learn from.

The changes follow Karras et al. 2020 (Training Generative Adversarial Networks with Limited Data).
As in Karras et al. 2022, section 5, a prior is conditioned on them, so that it can then be asked for
unchanged faces.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

NUM_CHANGES = 7  # right, down, zoom, turn, brightness, contrast, saturation
NUM_CHANGED = 4  # changed versions of each training face for a flow
# Size of a change of 1: a share of the side for each of right and down, the logarithm of the size,
# an angle; then a brightness, and the logarithms of contrast and saturation.
_SHIFT, _ZOOM, _TURN = 0.0225, 0.05, math.radians(4)
_BRIGHTNESS, _CONTRAST, _SATURATION = 0.07, 0.15, 0.3
_MAX_CHANGE = 2.5
_SHARE = 0.6  # of faces that are changed in geometry, and independently in colour


def draw_changes(count: int, rng: torch.Generator) -> Tensor:
    """Random changes (count, NUM_CHANGES): clamped standard normal, or 0 where they are left out.

    Every row changes the geometry, the colour, or both.
    """
    chosen = torch.rand(count, 2, generator=rng) < _SHARE
    chosen[:, 0] |= ~chosen.any(1)
    counts = torch.tensor([4, NUM_CHANGES - 4])
    normal = torch.randn(count, NUM_CHANGES, generator=rng).clamp(-_MAX_CHANGE, _MAX_CHANGE)
    return normal * chosen.repeat_interleave(counts, dim=1)


def change(images: Tensor, changes: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], each changed by its row of changes (B, NUM_CHANGES).

    Pixels from beyond the edges are mirrored.
    """
    is_moved = _per_image(changes[:, :4].any(1))
    moved = torch.where(is_moved, _move(images, changes[:, :4]), images)
    brightness, contrast, saturation = (_per_image(c) for c in changes[:, 4:].unbind(1))
    factors = (_CONTRAST * contrast).exp(), (_SATURATION * saturation).exp()
    return adjust_colours(moved, _BRIGHTNESS * brightness, *factors).clamp(0, 1)


def adjust_colours(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Tensor:
    """Scale the saturation, then the contrast of images (B, 3, H, W), and add a brightness.

    The contrast is that about each image's mean. The three amounts are (B, 1, 1, 1).
    """
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    level = images.mean((1, 2, 3), keepdim=True)
    return level + (images - level) * contrast + brightness


def _move(images: Tensor, changes: Tensor) -> Tensor:
    """Move, zoom and turn images (B, 3, H, W) by changes (B, 4)."""
    across, down, zoom, turn = changes.unbind(1)
    # the affine map from each output place to its source, in coordinates from -1 to 1
    cosine, sine = (f(_TURN * turn) / (_ZOOM * zoom).exp() for f in (torch.cos, torch.sin))
    rows = [[cosine, -sine, -2 * _SHIFT * across], [sine, cosine, -2 * _SHIFT * down]]
    source = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = functional.affine_grid(source, list(images.shape), align_corners=False)
    # not all releases of torch have this sampling on MPS
    device = torch.device("cpu") if images.device.type == "mps" else images.device
    moved = functional.grid_sample(
        images.to(device),
        grid.to(device),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    return moved.to(images.device)


def _per_image(values: Tensor) -> Tensor:
    """Values (B,) in a shape that broadcasts with images: (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)

"""Pixels as tensors: from 0…255 to [0, 1], and back.

`pixels` are uint8 (…, H, W, 3) in sRGB; `images` are float32 (…, 3, H, W) in [0, 1].
"""

import torch
from torch import Tensor

from facevae.data.images import Pixels


def from_pixels(pixels: Pixels | Tensor) -> Tensor:
    """uint8 (…, H, W, 3) in 0…255 → float32 (…, 3, H, W) in [0, 1]."""
    return torch.as_tensor(pixels).movedim(-1, -3).float() / 255


def to_pixels(images: Tensor) -> Pixels:
    """float (…, 3, H, W) in [0, 1] → uint8 (…, H, W, 3) in 0…255; values outside are clipped."""
    levels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()

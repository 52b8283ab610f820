"""Which parts of a picture an edit changes, and the photo's own detail in the others.

Pictures are uint8 pixels (S, S, 3). A share says how much of something is kept at each pixel,
(S, S): 255 is all of it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from facevae.data.images import Pixels

Share = npt.NDArray[np.uint8]

# changes of more levels than this, smoothed over so many pixels, leave nothing of what was there
_THRESHOLD, _RADIUS = 25, 2
_LIGHT_RADIUS = 6  # pixels over which light and colour vary


def with_detail(pixels: Pixels, instead_of: Pixels, photo: Pixels) -> Pixels:
    """`photo`, changed by the difference between `pixels` and `instead_of`.

    It keeps its detail that neither of them has. Where the difference is large, that detail is
    removed too: it belongs to what the edit removed, such as the frame of a pair of glasses.
    A grey photo stays grey.
    """
    pixels, instead_of = coloured_like(photo, pixels, instead_of)
    kept = share_kept(pixels, instead_of)
    return _rounded(detailed(pixels, instead_of, photo, kept))


def with_details(pixels: Pixels, faces: Iterable[tuple[float, Pixels, Pixels]]) -> Pixels:
    """`pixels` of a face between others, with some of the detail that a decoder leaves out of these.

    `faces` are shares from 0 to 1, pictures as a decoder drew them, and the photos that these are
    of. Nothing of a photo is added where `pixels` differ much from it. With a share of 1 and without
    a difference, the result is the photo.
    """
    added = np.zeros(pixels.shape, np.float32)
    for share, instead_of, photo in faces:
        kept = share_kept(pixels, instead_of)
        added += share * (detailed(pixels, instead_of, photo, kept) - pixels)
    return _rounded(pixels + added)


def redrawn(tuned: Pixels, plain: Pixels, tuned_start: Pixels, plain_start: Pixels) -> Pixels:
    """An edit as a tuned decoder drew it, but where it changes a lot, as the plain decoder did.

    There a tuned decoder would mix in what it has learned of the photo: the closed lips under a
    smile. `tuned_start` and `plain_start` are of the unedited face, and tell where the edit changes a
    lot. What the plain decoder drew is given the photo's light and colour.
    """
    kept = share_kept(plain, plain_start)
    light = _smooth(tuned_start, _LIGHT_RADIUS) - _smooth(plain_start, _LIGHT_RADIUS)
    lit = plain.astype(np.float32) + light
    share = kept[..., None].astype(np.float32) / 255
    return _rounded(share * tuned.astype(np.float32) + (1 - share) * lit)


def share_kept(pixels: Pixels, instead_of: Pixels) -> Share:
    """How much is kept of what was at each pixel, the less the more it changes."""
    change = np.sqrt(np.square(pixels.astype(np.float32) - instead_of).mean(2))
    smooth = _smooth(change.round().astype(np.uint8), _RADIUS)
    kept: Share = (255 / (1 + (smooth / _THRESHOLD) ** 4)).round().astype(np.uint8)
    return kept


def detailed(
    pixels: Pixels, instead_of: Pixels, photo: Pixels, kept: Share
) -> npt.NDArray[np.float32]:
    """`pixels` with the share `kept` of the photo's detail that `instead_of` lacks, not rounded."""
    detail = photo.astype(np.float32) - instead_of
    return pixels.astype(np.float32) + kept[..., None].astype(np.float32) / 255 * detail


def coloured_like(photo: Pixels, *pictures: Pixels) -> list[Pixels]:
    """Pictures (S, S, 3) without their colours if the photo (H, W, 3) has none, else as they are."""
    if (photo != photo[..., :1]).any():
        return list(pictures)
    return [np.array(Image.fromarray(picture).convert("L").convert("RGB")) for picture in pictures]


def _smooth(values: npt.NDArray[np.uint8], radius: int) -> npt.NDArray[np.float32]:
    blurred = Image.fromarray(values).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, np.float32)


def _rounded(values: npt.NDArray[np.floating[Any]]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)

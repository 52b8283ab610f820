"""Framings: where a face's five points lie in a square, and where that square lies in a photo.

Positions are complex numbers x + iy, with y pointing down: to multiply is to rotate and scale.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from facevae.data.images import Pixels, centred_square
from facevae.faces.detail import coloured_like, detailed, share_kept

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # as seen in the picture
Points = npt.NDArray[np.float64]
"""Positions of the five `POINTS`: (5, 2), x to the right and y down."""

Square = npt.NDArray[np.complex128]
"""The four corners of a square, clockwise from the upper left."""

CORNERS = np.array([0, 1, 1 + 1j, 1j])
ALIGNED = 0.1  # mean error of the corners, as a share of the side, that needs no correction
_SOFT_EDGE = 0.12  # width of a pasted square's blended edge, as a share of its side
# offset of the nose, as a share of the face's extent, beyond which the face is a profile: 1 in 30
# faces of FFHQ
_PROFILE_OFFSET = 0.165
_BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Framing:
    """Typical positions of the five points in a square of side 1, and the spread about each.

    If faces were scaled by the rule of FFHQ's authors, `extent` is their `extent_of` as a share of
    the square's side. It is None if they were scaled by their points.
    """

    points: tuple[tuple[float, float], ...]
    spreads: tuple[float, ...]
    extent: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Map each point's name to [x, y, spread], and "extent" to the extent."""
        rows = zip(POINTS, self.points, self.spreads, strict=True)
        points = {name: [*point, spread] for name, point, spread in rows}
        return {**points, "extent": self.extent}

    @classmethod
    def from_dict(cls, values: object) -> "Framing":
        """The inverse of `to_dict`. Raises `ValueError`."""
        if not isinstance(values, dict) or tuple(values) != (*POINTS, "extent"):
            msg = f"a framing needs {', '.join(POINTS)} and extent"
            raise ValueError(msg)
        rows = [tuple(float(v) for v in values[name]) for name in POINTS]
        if any(len(row) != 3 or not all(map(math.isfinite, row)) or row[2] <= 0 for row in rows):  # noqa: PLR2004 - x, y, spread
            msg = "a framing's points need x, y and a spread above 0"
            raise ValueError(msg)
        if any(not -1 < v < 2 for row in rows for v in row):  # noqa: PLR2004 - within one side of the square
            msg = "a framing's points must lie in or about a square of side 1"
            raise ValueError(msg)
        extent = None if values["extent"] is None else float(values["extent"])
        if extent is not None and not 0.01 < extent < 100:  # noqa: PLR2004 - shares of the square's side
            msg = "a framing's extent must be from 0.01 to 100"
            raise ValueError(msg)
        points, spreads = tuple((x, y) for x, y, _ in rows), tuple(spread for *_, spread in rows)
        return cls(points, spreads, extent)


# measured with `measure_framing` on photographs framed as FFHQ's authors published
FFHQ = Framing(
    ((0.375, 0.469), (0.628, 0.469), (0.500, 0.617), (0.383, 0.733), (0.618, 0.733)),
    (0.012, 0.012, 0.046, 0.027, 0.028),
    0.513,
)


@dataclass(frozen=True)
class Placed:
    """A face located in its photo: the upright picture, and the corners of the face's square.

    `turns` is the number of anticlockwise quarter turns that made the photo upright. `is_profile`
    is whether the face is known to look far to a side.
    """

    picture: Image.Image
    square: Square
    turns: int = 0
    is_profile: bool = False

    def cut(self, size: int) -> Pixels:
        """The square's pixels (size, size, 3); outside the photo, its mirror image continues it."""
        if np.array_equal(self.square, largest_square(self.picture)):
            return centred_square(self.picture, size)
        return cut_square(self.picture, self.square, size)

    @property
    def photo(self) -> Pixels:
        """The whole photo (H, W, 3) in its original orientation."""
        return np.rot90(np.array(self.picture), -self.turns).copy()

    def paste(self, pixels: Pixels, instead_of: Pixels | None = None) -> Pixels:
        """The whole photo (H, W, 3) in its original orientation, with `pixels` (S, S, 3) pasted.

        The edges are blended. With `instead_of` (S, S, 3), the photo keeps its own detail, as
        `with_detail` describes.
        """
        left, top, right, bottom = _bounds(self.square)
        left, top = max(left, 0), max(top, 0)
        photo = np.array(self.picture)
        region = photo[top:bottom, left:right]
        warp = partial(
            _warped,
            square=self.square - complex(left, top),
            shape=(region.shape[1], region.shape[0]),
        )
        weight = warp(_soft_mask(len(pixels))).astype(np.float32)[..., None] / 255
        change: npt.NDArray[np.float32]
        if instead_of is None:
            (pixels,) = coloured_like(region, pixels)
            change = warp(pixels).astype(np.float32) - region
        else:
            pixels, instead_of = coloured_like(region, pixels, instead_of)
            kept = warp(share_kept(pixels, instead_of))
            change = detailed(warp(pixels), warp(instead_of), region, kept) - region
        region[:] = (region + weight * change).round().clip(0, 255).astype(np.uint8)
        return np.rot90(photo, -self.turns).copy()

    def again(self, photo: Pixels, size: int) -> Pixels:
        """Cut the same square out of another photo (H, W, 3) of this size, as from `paste`."""
        upright = Image.fromarray(np.rot90(photo, self.turns))
        return replace(self, picture=upright).cut(size)


def square_of(points: Points, framing: Framing) -> Square:
    """The corners, clockwise from the upper left, of the square in which `points` have the framing.

    This is the similarity transform with the least squared error, where each point has the inverse
    of its variance as weight (Umeyama 1991, without reflection). If the framing has an extent, that
    determines the scale instead.
    """
    target, source = to_complex(points), to_complex(np.array(framing.points))
    weights = 1 / np.square(framing.spreads)
    weights /= weights.sum()
    mean_target, mean_source = weights @ target, weights @ source
    a, b = source - mean_source, target - mean_target
    factor = (weights * a.conj()) @ b / (weights @ np.square(np.abs(a)))
    if framing.extent is not None:
        factor *= extent_of(target) / framing.extent / max(float(abs(factor)), 1e-12)
    corners: npt.NDArray[np.complex128] = mean_target + factor * (CORNERS - mean_source)
    return corners


def framed_alike(a: Framing, b: Framing) -> bool:
    """Whether faces in one framing need no correction for the other."""
    error = np.abs(square_of(np.array(a.points), b) - CORNERS).mean()
    return bool(error < ALIGNED)


def to_complex(points: Points) -> npt.NDArray[np.complex128]:
    """Points (N, 2) → complex positions (N,)."""
    positions: npt.NDArray[np.complex128] = points @ np.array((1, 1j))
    return positions


def extent_of(points: npt.NDArray[np.complex128]) -> float:
    """The length by which FFHQ's authors scaled a face (Karras, Laine & Aila 2019)."""
    left_eye, right_eye, _, left_mouth, right_mouth = points.tolist()
    eyes_to_mouth = (left_mouth + right_mouth - left_eye - right_eye) / 2
    return float(max(2.0 * abs(right_eye - left_eye), 1.8 * abs(eyes_to_mouth)))


def is_profile(points: Points) -> bool:
    """Whether the face looks far to a side: its nose is far from the middle of eyes and mouth."""
    positions = to_complex(points)
    left_eye, right_eye, nose, left_mouth, right_mouth = positions.tolist()
    up = (left_eye + right_eye - left_mouth - right_mouth) / 2
    middle = (left_eye + right_eye + left_mouth + right_mouth) / 4
    offset = ((nose - middle) * up.conjugate() / max(abs(up), 1e-9)).imag
    return bool(abs(offset) > _PROFILE_OFFSET * extent_of(positions))


def largest_square(picture: Image.Image) -> Square:
    """The corners of a picture's largest centred square."""
    side = min(picture.size)
    corner = complex((picture.width - side) // 2, (picture.height - side) // 2)
    return corner + side * CORNERS


def cut_square(picture: Image.Image, square: Square, size: int) -> Pixels:
    """Resample a square of a picture to (size, size, 3).

    Pixels are averaged if it shrinks. Beyond its edges the picture is mirrored.
    """
    across = square[1] - square[0]
    # cut at an integer multiple of the size, then average
    factor = max(1, math.ceil(abs(across) / size))
    left, top, right, bottom = _bounds(square)
    inside = picture.crop(
        (max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height))
    )
    margins = (
        (max(-top, 0), max(bottom - picture.height, 0)),
        (max(-left, 0), max(right - picture.width, 0)),
        (0, 0),
    )
    source = np.asarray(inside)
    if any(map(any, margins)):
        source = np.pad(source, margins, mode="symmetric")
    corner, step = square[0] - complex(left, top), across / (size * factor)
    affine = (step.real, -step.imag, corner.real, step.imag, step.real, corner.imag)
    cut = Image.fromarray(source).transform(
        (size * factor, size * factor), Image.Transform.AFFINE, affine, _BICUBIC
    )
    return np.array(cut.reduce(factor) if factor > 1 else cut)


def _bounds(square: Square) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the square's bounding box, rounded outwards to pixels."""
    xs, ys = square.real, square.imag
    return math.floor(xs.min()), math.floor(ys.min()), math.ceil(xs.max()), math.ceil(ys.max())


def _warped(pixels: Pixels, square: Square, shape: tuple[int, int]) -> Pixels:
    """Resample pixels (S, S, …) into the square of a picture of `shape` (width, height), else 0."""
    across = square[1] - square[0]
    picture = Image.fromarray(pixels)
    if abs(across) < len(pixels):  # shrink smoothly first, since the transform does not average
        side = max(1, round(abs(across)))
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    step = picture.width / across
    corner = -square[0] * step
    affine = (step.real, -step.imag, corner.real, step.imag, step.real, corner.imag)
    return np.array(picture.transform(shape, Image.Transform.AFFINE, affine, _BICUBIC))


def _soft_mask(size: int) -> npt.NDArray[np.uint8]:
    """A mask (size, size): 255 inside, falling smoothly to 0 at the edges."""
    edge = np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size)) / (_SOFT_EDGE * size)
    ramp = edge.clip(0, 1) ** 2 * (3 - 2 * edge.clip(0, 1))
    return (255 * np.outer(ramp, ramp)).round().astype(np.uint8)

"""How a face is framed: where its five points lie in a square, and that square in a photo.

Places are complex numbers, x + iy with y down, so that turning and scaling is multiplying.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from facevae.images import Pixels, centred_square

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # as seen in the picture
Points = npt.NDArray[np.float64]
"""Where the five `POINTS` are: (5, 2), x to the right and y down."""

Square = npt.NDArray[np.complex128]
"""The four corners of a square, clockwise from the upper left."""

CORNERS = np.array([0, 1, 1 + 1j, 1j])
ALIGNED = 0.1  # mean error of the corners, of the side, that needs no correction
_SOFT_EDGE = 0.12  # of a pasted square's side
_PROFILE = 0.165  # of a face's extent; of FFHQ's faces one in 30 has its nose farther aside
# changes of more than so many levels, about as far as so many pixels, take the photo's detail along
_DETAIL_GONE, _DETAIL_REACH = 25, 2
_BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Framing:
    """Where the five points lie in a square of side 1, and how far they spread about there.

    Where faces were scaled by the rule of FFHQ's authors, `extent` is what `extent_of` is of the
    square's side; None where they were scaled by their points.
    """

    points: tuple[tuple[float, float], ...]
    spreads: tuple[float, ...]
    extent: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Each point's name with [x, y, spread], and the extent."""
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
        if any(not -1 < v < 2 for row in rows for v in row):  # noqa: PLR2004 - a side about the square
            msg = "a framing's points must lie in or about a square of side 1"
            raise ValueError(msg)
        extent = None if values["extent"] is None else float(values["extent"])
        if extent is not None and not 0.01 < extent < 100:  # noqa: PLR2004 - of the square's side
            msg = "a framing's extent must be from 0.01 to 100"
            raise ValueError(msg)
        points, spreads = tuple((x, y) for x, y, _ in rows), tuple(spread for *_, spread in rows)
        return cls(points, spreads, extent)


# measured with `measure_framing` on photographs that were framed as FFHQ's authors published
FFHQ = Framing(
    ((0.375, 0.469), (0.628, 0.469), (0.500, 0.617), (0.383, 0.733), (0.618, 0.733)),
    (0.012, 0.012, 0.046, 0.027, 0.028),
    0.513,
)


@dataclass(frozen=True)
class Placed:
    """A face in its photo: the upright picture, and the corners of the square to take, clockwise.

    `turns` quarter turns, anticlockwise, made the photo upright. `is_profile` is whether the face
    is known to look far to a side.
    """

    picture: Image.Image
    square: Square
    turns: int = 0
    is_profile: bool = False

    def cut(self, size: int) -> Pixels:
        """The square's pixels (size, size, 3); what lies outside the photo is mirrored in."""
        if np.array_equal(self.square, largest_square(self.picture)):
            return centred_square(self.picture, size)
        return cut_square(self.picture, self.square, size)

    @property
    def photo(self) -> Pixels:
        """The whole photo (H, W, 3), the way round it was."""
        return np.rot90(np.array(self.picture), -self.turns).copy()

    def paste(self, pixels: Pixels, instead_of: Pixels | None = None) -> Pixels:
        """The whole photo (H, W, 3), the way round it was, with `pixels` (S, S, 3) in the square.

        The edges are blended. With `instead_of` (S, S, 3), the photo is changed by how `pixels`
        differ from that, and keeps the detail that neither has, but where they differ much: there
        it belongs to what was, as a frame does to glasses that are taken off.
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
        if _is_grey(region):
            pixels = _grey(pixels)
            instead_of = None if instead_of is None else _grey(instead_of)
        if instead_of is None:
            change = warp(pixels).astype(np.float32) - region
        else:
            kept = warp(_kept_detail(pixels, instead_of)).astype(np.float32)[..., None] / 255
            detail = region - warp(instead_of).astype(np.float32)
            change = warp(pixels) + kept * detail - region
        region[:] = (region + weight * change).round().clip(0, 255).astype(np.uint8)
        return np.rot90(photo, -self.turns).copy()

    def again(self, photo: Pixels, size: int) -> Pixels:
        """What `cut` gives of another photo (H, W, 3) of the same extent, as `paste` makes one."""
        upright = Image.fromarray(np.rot90(photo, self.turns))
        return replace(self, picture=upright).cut(size)


def square_of(points: Points, framing: Framing) -> Square:
    """The corners, clockwise from the upper left, of the square in which `points` are framed so.

    The similarity with the least squared error, each point weighted by the inverse of the
    variance about its place (Umeyama 1991, without reflection), or scaled by its extent.
    """
    here, there = to_complex(points), to_complex(np.array(framing.points))
    weights = 1 / np.square(framing.spreads)
    weights /= weights.sum()
    mean_here, mean_there = weights @ here, weights @ there
    a, b = there - mean_there, here - mean_here
    turn = (weights * a.conj()) @ b / (weights @ np.square(np.abs(a)))
    if framing.extent is not None:
        turn *= extent_of(here) / framing.extent / max(float(abs(turn)), 1e-12)
    corners: npt.NDArray[np.complex128] = mean_here + turn * (CORNERS - mean_there)
    return corners


def framed_alike(a: Framing, b: Framing) -> bool:
    """Whether faces in one framing pass for faces in the other, uncorrected."""
    error = np.abs(square_of(np.array(a.points), b) - CORNERS).mean()
    return bool(error < ALIGNED)


def to_complex(points: Points) -> npt.NDArray[np.complex128]:
    """Points (N, 2) → places (N,)."""
    places: npt.NDArray[np.complex128] = points @ np.array((1, 1j))
    return places


def extent_of(points: npt.NDArray[np.complex128]) -> float:
    """By what FFHQ's authors scaled a face, of its five points (Karras, Laine & Aila 2019)."""
    left_eye, right_eye, _, left_mouth, right_mouth = points.tolist()
    eyes_to_mouth = (left_mouth + right_mouth - left_eye - right_eye) / 2
    return float(max(2.0 * abs(right_eye - left_eye), 1.8 * abs(eyes_to_mouth)))


def is_profile(points: Points) -> bool:
    """Whether a face of these points looks far to a side: its nose lies beside its middle."""
    places = to_complex(points)
    left_eye, right_eye, nose, left_mouth, right_mouth = places.tolist()
    up = (left_eye + right_eye - left_mouth - right_mouth) / 2
    middle = (left_eye + right_eye + left_mouth + right_mouth) / 4
    aside = ((nose - middle) * up.conjugate() / max(abs(up), 1e-9)).imag
    return bool(abs(aside) > _PROFILE * extent_of(places))


def largest_square(picture: Image.Image) -> Square:
    """The largest centred square of a picture, by its corners."""
    side = min(picture.size)
    corner = complex((picture.width - side) // 2, (picture.height - side) // 2)
    return corner + side * CORNERS


def cut_square(picture: Image.Image, square: Square, size: int) -> Pixels:
    """The square's pixels (size, size, 3), smoothed where it shrinks; mirrored beyond the edges."""
    across = square[1] - square[0]
    # cut at a whole multiple of the size, then average
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
    """Left, top, right and bottom of the whole pixels that hold the square."""
    xs, ys = square.real, square.imag
    return math.floor(xs.min()), math.floor(ys.min()), math.ceil(xs.max()), math.ceil(ys.max())


def _warped(pixels: Pixels, square: Square, shape: tuple[int, int]) -> Pixels:
    """Pixels (S, S, …) brought into the square of a picture of `shape` (width, height), 0 about it."""
    across = square[1] - square[0]
    picture = Image.fromarray(pixels)
    if abs(across) < len(pixels):  # smooth it first, since the warp below takes single pixels
        side = max(1, round(abs(across)))
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    step = picture.width / across
    corner = -square[0] * step
    affine = (step.real, -step.imag, corner.real, step.imag, step.real, corner.imag)
    return np.array(picture.transform(shape, Image.Transform.AFFINE, affine, _BICUBIC))


def _kept_detail(pixels: Pixels, instead_of: Pixels) -> npt.NDArray[np.uint8]:
    """How much of a photo's detail stays in each place, (S, S): 255 is all of it."""
    change = np.sqrt(np.square(pixels.astype(np.float32) - instead_of).mean(2))
    around = ImageFilter.GaussianBlur(_DETAIL_REACH)
    smooth = np.array(Image.fromarray(change.round().astype(np.uint8)).filter(around), np.float32)
    kept: npt.NDArray[np.uint8] = (
        (255 / (1 + (smooth / _DETAIL_GONE) ** 4)).round().astype(np.uint8)
    )
    return kept


def _is_grey(pixels: Pixels) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def _grey(pixels: Pixels) -> Pixels:
    return np.array(Image.fromarray(pixels).convert("L").convert("RGB"))


def _soft_mask(size: int) -> npt.NDArray[np.uint8]:
    """255 within, falling smoothly to 0 at the edges: (size, size)."""
    edge = np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size)) / (_SOFT_EDGE * size)
    ramp = edge.clip(0, 1) ** 2 * (3 - 2 * edge.clip(0, 1))
    return (255 * np.outer(ramp, ramp)).round().astype(np.uint8)

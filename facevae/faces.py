"""Find the faces in a picture and bring one into the framing that a model was trained on."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from facevae.detection import ONET_SIZE, ONet, YuNet
from facevae.errors import ImageError
from facevae.images import Pixels, centred_square, load_square, open_picture

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # as seen in the picture
Points = npt.NDArray[np.float64]
"""Where the five `POINTS` are: (5, 2), x to the right and y down."""

_LONGEST, _SHORTEST = 640, 160  # sides in pixels at which faces are looked for
_MIN_SCORE, _MAX_OVERLAP = 0.6, 0.3
_UPRIGHT = 0.91  # a score that no face gets that lies on its side or upside down
_ALIGNED = 0.1  # mean error of the corners, of the side, that needs no correction
_CORNERS = np.array([0, 1, 1 + 1j, 1j])


@dataclass(frozen=True)
class Framing:
    """Where the five points lie in a square of side 1, and how far they spread about there.

    Where faces were scaled by the rule of FFHQ's authors, `extent` is what `_extent` is of the
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
class Face:
    """A face in a picture, in its pixels: `box` is left, top, right, bottom, `score` at most 1."""

    box: tuple[float, float, float, float]
    points: Points
    score: float

    @property
    def area(self) -> float:
        """Of its box, in pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True)
class Placed:
    """A face in its photo: the upright picture, and the corners of the square to take, clockwise.

    `turns` quarter turns, anticlockwise, made the photo upright.
    """

    picture: Image.Image
    square: npt.NDArray[np.complex128]
    turns: int = 0

    def cut(self, size: int) -> Pixels:
        """The square's pixels (size, size, 3); what lies outside the photo is mirrored in."""
        if np.array_equal(self.square, _centred_square(self.picture)):
            return centred_square(self.picture, size)
        return _cut(self.picture, self.square, size)

    @property
    def photo(self) -> Pixels:
        """The whole photo (H, W, 3), the way round it was."""
        return np.rot90(np.array(self.picture), -self.turns).copy()

    def paste(self, pixels: Pixels, instead_of: Pixels | None = None) -> Pixels:
        """The whole photo (H, W, 3), the way round it was, with `pixels` (S, S, 3) in the square.

        The edges are blended. With `instead_of` (S, S, 3), the photo is changed by how `pixels`
        differ from that, and so keeps the detail that neither has.
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
        before = region if instead_of is None else warp(instead_of)
        change = warp(pixels).astype(np.float32) - before
        region[:] = (region + weight * change).round().clip(0, 255).astype(np.uint8)
        return np.rot90(photo, -self.turns).copy()


def place(
    picture: Image.Image, framing: Framing | None, number: int = 1, name: str = "the picture"
) -> Placed:
    """Face `number` of an RGB photo, the largest being 1, and where the framing puts its square.

    Without a framing, and where the photo is framed so already, that is the largest centred
    square. A photo that lies on its side is turned upright. Raises `ImageError` for one without
    that face.
    """
    if framing is None:
        return Placed(picture, _centred_square(picture))
    picture, turns, faces = upright(picture)
    square = _square_of(choose_face(faces, name, number).points, framing)
    centred = _centred_square(picture)
    if np.abs(square - centred).mean() < _ALIGNED * abs(centred[1] - centred[0]):
        square = centred
    return Placed(picture, square, turns)


def load_face(
    source: Path | BinaryIO,
    size: int,
    framing: Framing | None,
    number: int = 1,
    name: str | None = None,
) -> Pixels:
    """Face `number` of a photo, brought into the framing: (size, size, 3).

    Raises `ImageError`, as `place` does, for a photo that cannot be read too.
    """
    if framing is None:
        return load_square(source, size, name)
    return place_photo(source, framing, number, name).cut(size)


def place_photo(
    source: Path | BinaryIO, framing: Framing | None, number: int = 1, name: str | None = None
) -> Placed:
    """What `place` finds in a photo. Raises `ImageError`, for one that cannot be read too."""
    return place(open_picture(source, name), framing, number, name or str(source))


Opener = Callable[[], BinaryIO]


def load_faces_of(
    photos: Iterable[tuple[str, Opener]], size: int, framing: Framing | None, number: int = 1
) -> Iterator[Pixels | ImageError]:
    """What `load_face` gives of each photo, or why there is none, in order, on every core.

    A photo is its name, for people, and what opens it.
    """

    def load(photo: tuple[str, Opener]) -> Pixels | ImageError:
        name, opener = photo
        try:
            with opener() as file:
                return load_face(file, size, framing, number, name)
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"{name}: {error.strerror or error}")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a photo a core, not a core a network
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rest = iter(photos)
            while part := list(islice(rest, _UNDER_WAY)):
                yield from pool.map(load, part)
    finally:
        torch.set_num_threads(threads)


_UNDER_WAY = 64  # photos at a time


def upright(picture: Image.Image) -> tuple[Image.Image, int, list[Face]]:
    """The picture the way up that its faces are, in how many quarter turns, and its faces.

    Only where no face is sure to stand upright are the other ways tried.
    """
    found = [(picture, 0, find_faces(picture))]
    if _best_score(found[0][2]) < _UPRIGHT:
        for turns in (1, 2, 3):
            turned = picture.transpose(_TURNS[turns])
            found.append((turned, turns, find_faces(turned)))
    return max(found, key=lambda way: _best_score(way[2]))


_TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}


def _best_score(faces: list[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


def find_faces(picture: Image.Image) -> list[Face]:
    """The faces in an RGB picture, the largest first."""
    yunet, _ = _networks()
    scale = min(_LONGEST / max(picture.size), max(1.0, _SHORTEST / max(picture.size)))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    colours = torch.from_numpy(np.array(small)[..., ::-1].copy()).permute(2, 0, 1).float()
    padding = (0, -width % 32, 0, -height % 32)
    with torch.no_grad():
        found = yunet(nn.functional.pad(colours, padding)[None])
        scores, boxes = (part[0] for part in found[:2])
    kept = _without_overlaps(scores, boxes)
    faces = []
    for i in kept:
        left, top, right, bottom = (float(v) / scale for v in boxes[i])
        box = (left, top, right, bottom)
        faces.append(Face(box, _find_points(picture, box), float(scores[i])))
    return sorted(faces, key=lambda face: -face.area)


def choose_face(faces: Sequence[Face], name: str, number: int = 1) -> Face:
    """Face `number`, 1 being the largest. Raises `ImageError` where there are not so many."""
    if not faces:
        msg = f"{name}: no face found; crop closer, or take the picture as it is with --no-align"
        raise ImageError(msg)
    if number > len(faces):
        found = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
        msg = f"{name}: has {found}, so there is no --face {number}"
        raise ImageError(msg)
    return faces[number - 1]


def measure_framing(pictures: Pixels) -> Framing | None:
    """How pictures (N, H, H, 3) of one face each are framed; None if they are not framed alike."""
    found = []
    for pixels in pictures:
        faces = find_faces(Image.fromarray(pixels))
        if faces:
            found.append(faces[0].points / len(pixels))
    if len(found) < max(2, len(pictures) / 2):
        return None
    points = np.stack(found)
    middle = np.median(points, axis=0)
    spreads = np.sqrt(np.square(points - middle).sum(2).mean(0)).clip(1e-3)
    by_points = Framing(tuple((float(x), float(y)) for x, y in middle), tuple(map(float, spreads)))
    by_extent = replace(by_points, extent=float(np.mean([_extent(_complex(p)) for p in points])))

    def error(framing: Framing) -> float:
        return float(np.median([np.abs(_square_of(p, framing) - _CORNERS).mean() for p in points]))

    framing = min(by_points, by_extent, key=error)
    return framing if error(framing) < _ALIGNED else None


def framed_alike(a: Framing, b: Framing) -> bool:
    """Whether faces in one framing pass for faces in the other, uncorrected."""
    error = np.abs(_square_of(np.array(a.points), b) - _CORNERS).mean()
    return bool(error < _ALIGNED)


# ---------------------------------------------------------------- networks


@cache
def _networks() -> tuple[YuNet, ONet]:
    weights = load_file(Path(str(resources.files("facevae") / "weights" / "faces.safetensors")))
    networks: dict[str, Any] = {"yunet": YuNet(), "onet": ONet()}
    for name, network in networks.items():
        part = {k.removeprefix(f"{name}."): t for k, t in weights.items() if k.startswith(name)}
        network.load_state_dict(part)
        network.eval()
    return networks["yunet"], networks["onet"]


def _without_overlaps(scores: torch.Tensor, boxes: torch.Tensor) -> list[int]:
    """Non-maximum suppression: the rows to keep, the best first."""
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if scores[i] < _MIN_SCORE:
            break
        if all(_overlap(boxes[i], boxes[k]) < _MAX_OVERLAP for k in kept):
            kept.append(i)
    return kept


def _overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two boxes (4,)."""
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min(0)
    shared = sides.prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def _find_points(picture: Image.Image, box: tuple[float, float, float, float]) -> Points:
    """The five points in a box, in the picture's pixels; looked for again with the head upright."""
    left, top, right, bottom = box
    centre, side = complex(left + right, top + bottom) / 2, max(right - left, bottom - top)
    left_eye, right_eye = _points_in(picture, centre, complex(side), _ONE_WINDOW)[:2]
    eyes = right_eye - left_eye
    found = _points_in(picture, centre, side * eyes / max(abs(eyes), 1e-9), _WINDOWS)
    return np.stack([found.real, found.imag], axis=1)


# O-Net errs by a pixel of its 48 or so: the mean over windows of several sizes (of the box) and
# shifts (of the box's 120th part), each looked at in the mirror too, errs less
_BOX, _MARGIN = 120, 24
_ONE_WINDOW = ((1.0, 0, 0),)
_WINDOWS = tuple(
    (scale, x, y) for scale in (0.9, 1.1) for x, y in ((0, 7), (0, -7), (7, 0), (-7, 0))
)
_IN_MIRROR = [1, 0, 2, 4, 3]  # left and right change places


def _points_in(
    picture: Image.Image,
    centre: complex,
    across: complex,
    windows: Sequence[tuple[float, int, int]],
) -> npt.NDArray[np.complex128]:
    """The points (5,) of the face about `centre`, the upper side of whose box runs along `across`."""
    whole = _BOX + 2 * _MARGIN
    across = across * whole / _BOX
    corner = centre - across * (1 + 1j) / 2
    pixels = _cut(picture, corner + across * _CORNERS, whole)
    image = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 127.5) / 128
    crops, places = [], []
    for scale, x, y in windows:
        side = round(_BOX * scale)
        left, top = (whole - side) // 2 + x, (whole - side) // 2 + y
        crop = image[None, :, top : top + side, left : left + side]
        crops.append(_RESIZE(crop, (ONET_SIZE, ONET_SIZE)))
        places.append((complex(left, top), side))
    batch = torch.cat(crops)
    with torch.no_grad():
        found = _networks()[1](torch.cat([batch, batch.flip(3)]))[2].double()
    plain, mirrored = found.chunk(2)
    mirrored = mirrored[:, _IN_MIRROR] * torch.tensor([-1, 1]) + torch.tensor([1, 0])
    within = ((plain + mirrored) / 2).numpy() @ (1, 1j)
    points = np.mean([p * side + start for p, (start, side) in zip(within, places, strict=True)], 0)
    located: npt.NDArray[np.complex128] = corner + across * points / whole
    return located


_RESIZE = partial(nn.functional.interpolate, mode="bilinear", antialias=True)


# ---------------------------------------------------------------- geometry, in complex numbers


def _square_of(points: Points, framing: Framing) -> npt.NDArray[np.complex128]:
    """The corners, clockwise from the upper left, of the square in which `points` are framed so.

    The similarity with the least squared error, each point weighted by the inverse of the
    variance about its place (Umeyama 1991, without reflection), or scaled by its extent.
    """
    here, there = _complex(points), _complex(np.array(framing.points))
    weights = 1 / np.square(framing.spreads)
    weights /= weights.sum()
    mean_here, mean_there = weights @ here, weights @ there
    a, b = there - mean_there, here - mean_here
    turn = (weights * a.conj()) @ b / (weights @ np.square(np.abs(a)))
    if framing.extent is not None:
        turn *= _extent(here) / framing.extent / max(float(abs(turn)), 1e-12)
    corners: npt.NDArray[np.complex128] = mean_here + turn * (_CORNERS - mean_there)
    return corners


def _complex(points: Points) -> npt.NDArray[np.complex128]:
    places: npt.NDArray[np.complex128] = points @ np.array((1, 1j))
    return places


def _extent(points: npt.NDArray[np.complex128]) -> float:
    """By what FFHQ's authors scaled a face, of its five points (Karras, Laine & Aila 2019)."""
    left_eye, right_eye, _, left_mouth, right_mouth = points.tolist()
    eyes_to_mouth = (left_mouth + right_mouth - left_eye - right_eye) / 2
    return float(max(2.0 * abs(right_eye - left_eye), 1.8 * abs(eyes_to_mouth)))


def _centred_square(picture: Image.Image) -> npt.NDArray[np.complex128]:
    side = min(picture.size)
    corner = complex((picture.width - side) // 2, (picture.height - side) // 2)
    return corner + side * _CORNERS


def _cut(picture: Image.Image, square: npt.NDArray[np.complex128], size: int) -> Pixels:
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


def _bounds(square: npt.NDArray[np.complex128]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the whole pixels that hold the square."""
    xs, ys = square.real, square.imag
    return math.floor(xs.min()), math.floor(ys.min()), math.ceil(xs.max()), math.ceil(ys.max())


def _warped(pixels: Pixels, square: npt.NDArray[np.complex128], shape: tuple[int, int]) -> Pixels:
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


_BICUBIC = Image.Resampling.BICUBIC


def _soft_mask(size: int) -> npt.NDArray[np.uint8]:
    """255 within, falling smoothly to 0 at the edges: (size, size)."""
    edge = np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size)) / (_SOFT_EDGE * size)
    ramp = edge.clip(0, 1) ** 2 * (3 - 2 * edge.clip(0, 1))
    return (255 * np.outer(ramp, ramp)).round().astype(np.uint8)


_SOFT_EDGE = 0.12  # of the square's side

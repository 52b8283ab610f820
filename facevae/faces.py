"""Find the faces in a picture and bring one into the framing that a model was trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file

from facevae.detection import ONET_SIZE, ONet, YuNet
from facevae.errors import ImageError
from facevae.images import Pixels, centred_square, load_square, open_picture

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # as seen in the picture
Points = npt.NDArray[np.float64]
"""Where the five `POINTS` are: (5, 2), x to the right and y down."""

_LONGEST, _SHORTEST = 640, 160  # sides in pixels at which faces are looked for
_MIN_SCORE, _MAX_OVERLAP = 0.6, 0.3
_ALIGNED = 0.1  # mean error of the corners, of the side, that needs no correction
_CORNERS = np.array([0, 1, 1 + 1j, 1j])


@dataclass(frozen=True)
class Framing:
    """Where the five points lie in a square of side 1, and how far they spread about there."""

    points: tuple[tuple[float, float], ...]
    spreads: tuple[float, ...]

    def to_dict(self) -> dict[str, list[float]]:
        """Each point's name with [x, y, spread]."""
        rows = zip(POINTS, self.points, self.spreads, strict=True)
        return {name: [*point, spread] for name, point, spread in rows}

    @classmethod
    def from_dict(cls, values: object) -> "Framing":
        """The inverse of `to_dict`. Raises `ValueError`."""
        if not isinstance(values, dict) or tuple(values) != POINTS:
            msg = f"a framing needs {', '.join(POINTS)}"
            raise ValueError(msg)
        rows = [tuple(float(v) for v in row) for row in values.values()]
        if any(len(row) != 3 or not all(map(math.isfinite, row)) or row[2] <= 0 for row in rows):  # noqa: PLR2004 - x, y, spread
            msg = "a framing's points need x, y and a spread above 0"
            raise ValueError(msg)
        return cls(tuple((x, y) for x, y, _ in rows), tuple(spread for *_, spread in rows))


# measured with `measure_framing` on photographs that were framed as FFHQ's authors published
FFHQ = Framing(
    ((0.376, 0.471), (0.627, 0.470), (0.502, 0.615), (0.384, 0.732), (0.619, 0.730)),
    (0.011, 0.011, 0.043, 0.026, 0.027),
)


@dataclass(frozen=True)
class Face:
    """A face in a picture, in its pixels: `box` is left, top, right, bottom."""

    box: tuple[float, float, float, float]
    points: Points

    @property
    def area(self) -> float:
        """Of its box, in pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def load_face(path: Path, size: int, framing: Framing | None, number: int = 1) -> Pixels:
    """Face `number` of a photo, the largest being 1, brought into the framing: (size, size, 3).

    Without a framing it is the largest centred square. Raises `ImageError` for a photo that cannot
    be read, and for one without that face.
    """
    if framing is None:
        return load_square(path, size)
    picture = open_picture(path)
    return frame(picture, choose_face(find_faces(picture), str(path), number), framing, size)


def find_faces(picture: Image.Image) -> list[Face]:
    """The faces in an RGB picture, the largest first."""
    yunet, _ = _networks()
    scale = min(_LONGEST / max(picture.size), max(1.0, _SHORTEST / max(picture.size)))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    colours = torch.from_numpy(np.array(small)[..., ::-1].copy()).permute(2, 0, 1).float()
    padding = (0, -width % 32, 0, -height % 32)
    with torch.no_grad():
        found = yunet(torch.nn.functional.pad(colours, padding)[None])
        scores, boxes = (part[0] for part in found[:2])
    kept = _without_overlaps(scores, boxes)
    faces = []
    for i in kept:
        left, top, right, bottom = (float(v) / scale for v in boxes[i])
        box = (left, top, right, bottom)
        faces.append(Face(box, _find_points(picture, box)))
    return sorted(faces, key=lambda face: -face.area)


def frame(picture: Image.Image, face: Face, framing: Framing, size: int) -> Pixels:
    """The face brought into the framing: (size, size, 3); what lies outside is mirrored in.

    A picture that is framed so already gives its largest centred square, not resampled twice.
    """
    square = _square_of(face.points, framing)
    centred = _centred_square(picture)
    if np.abs(square - centred).mean() < _ALIGNED * abs(centred[1] - centred[0]):
        return centred_square(picture, size)
    return _cut(picture, square, size)


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
    framing = Framing(tuple((float(x), float(y)) for x, y in middle), tuple(map(float, spreads)))
    errors = [np.abs(_square_of(p, framing) - _CORNERS).mean() for p in points]
    return framing if np.median(errors) < _ALIGNED else None


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
    """The five points in a box, in the picture's pixels; looked for twice, the head upright."""
    left, top, right, bottom = box
    centre, side = complex(left + right, top + bottom) / 2, max(right - left, bottom - top)
    upright = _points_in(picture, centre, complex(side))
    left_eye, right_eye = upright[:2] @ (1, 1j)
    eyes = right_eye - left_eye
    turned = _points_in(picture, centre, side * eyes / max(abs(eyes), 1e-9))
    mean: Points = (upright + turned) / 2
    return mean


def _points_in(picture: Image.Image, centre: complex, across: complex) -> Points:
    """Points in the square about `centre` whose upper side runs along `across`."""
    corner = centre - across * (1 + 1j) / 2
    square = corner + across * _CORNERS
    pixels = _cut(picture, square, ONET_SIZE)
    crop = (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() - 127.5) / 128
    with torch.no_grad():
        within = _networks()[1](crop[None])[2][0].double().numpy()
    places = corner + across * (within @ (1, 1j))
    return np.stack([places.real, places.imag], axis=1)


# ---------------------------------------------------------------- geometry, in complex numbers


def _square_of(points: Points, framing: Framing) -> npt.NDArray[np.complex128]:
    """The corners, clockwise from the upper left, of the square in which `points` are framed so.

    The similarity with the least squared error, each point weighted by the inverse of the
    variance about its place (Umeyama 1991, without reflection).
    """
    here = points @ (1, 1j)
    there = np.array(framing.points) @ (1, 1j)
    weights = 1 / np.square(framing.spreads)
    weights /= weights.sum()
    mean_here, mean_there = weights @ here, weights @ there
    a, b = there - mean_there, here - mean_here
    turn = (weights * a.conj()) @ b / (weights @ np.square(np.abs(a)))
    corners: npt.NDArray[np.complex128] = mean_here + turn * (_CORNERS - mean_there)
    return corners


def _centred_square(picture: Image.Image) -> npt.NDArray[np.complex128]:
    side = min(picture.size)
    corner = complex((picture.width - side) / 2, (picture.height - side) / 2)
    return corner + side * _CORNERS


def _cut(picture: Image.Image, square: npt.NDArray[np.complex128], size: int) -> Pixels:
    """The square's pixels (size, size, 3), smoothed where it shrinks; mirrored beyond the edges."""
    across = square[1] - square[0]
    # cut at a whole multiple of the size, then average
    factor = max(1, math.ceil(abs(across) / size))
    bounds = [math.floor(square.real.min()), math.floor(square.imag.min())]
    bounds += [math.ceil(square.real.max()), math.ceil(square.imag.max())]
    left, top, right, bottom = bounds
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
        (size * factor, size * factor), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    )
    return np.array(cut.reduce(factor) if factor > 1 else cut)

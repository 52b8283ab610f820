"""Find the faces in a picture, and cut one out in the framing that a model was trained on."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from facevae.data.images import Pixels, load_square, open_picture
from facevae.data.pictures import Opener
from facevae.errors import Argument, ImageError, NoFaceError
from facevae.faces.detection import ONET_SIZE, ONet, YuNet
from facevae.faces.framing import (
    ALIGNED,
    CORNERS,
    Framing,
    Placed,
    Points,
    cut_square,
    extent_of,
    is_profile,
    largest_square,
    square_of,
    to_complex,
)
from facevae.system.files import packaged_weights

_BATCH = 64  # photos taken from an iterable at a time
# pictures are scaled for YuNet so that their longer side is between these, in pixels
_MAX_SIDE, _MIN_SIDE = 640, 160
_MIN_SCORE, _MAX_OVERLAP = 0.6, 0.3
_UPRIGHT = 0.91  # no face on its side or upside down has a score this high
_TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}

# O-Net's error is about one of its 48 pixels. The mean over windows of several sizes (relative to
# the box) and shifts (in 1/120 of the box), each with its mirror image, has a smaller error.
_BOX, _MARGIN = 120, 24
_ONE_WINDOW = ((1.0, 0, 0),)
_WINDOWS = tuple(
    (scale, x, y) for scale in (0.9, 1.1) for x, y in ((0, 7), (0, -7), (7, 0), (-7, 0))
)
_MIRRORED_ORDER = [1, 0, 2, 4, 3]  # left and right points change places
_resize = partial(nn.functional.interpolate, mode="bilinear", antialias=True)

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Face:
    """A detected face: `box` is left, top, right, bottom in pixels, `score` is at most 1."""

    box: tuple[float, float, float, float]
    points: Points
    score: float

    @property
    def area(self) -> float:
        """The area of the box in pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def place(
    picture: Image.Image, framing: Framing | None, number: int = 1, name: str = "the picture"
) -> Placed:
    """Find face `number` (1 is the largest) of an RGB photo, and its square in the framing.

    The square is the largest centred one if there is no framing, or if the photo has that framing
    already. With a framing, a photo on its side is turned upright. Raises `ImageError` if the photo
    does not have that face.
    """
    if framing is None:
        return Placed(picture, largest_square(picture))
    picture, turns, faces = right_way_up(picture)
    points = choose_face(faces, name, number).points
    square = square_of(points, framing)
    centred = largest_square(picture)
    if np.abs(square - centred).mean() < ALIGNED * abs(centred[1] - centred[0]):
        square = centred
    return Placed(picture, square, turns, is_profile(points))


def load_face(
    source: Path | BinaryIO,
    size: int,
    framing: Framing | None,
    number: int = 1,
    name: str | None = None,
    least_side: int = 0,
) -> Pixels:
    """Cut face `number` out of a photo, in the framing: (size, size, 3).

    Raises `ImageError` as `place` does, if the photo cannot be read, or if the side of the face's
    square is shorter than `least_side` pixels.
    """
    if framing is None:
        return load_square(source, size, name)
    placed = place_photo(source, framing, number, name)
    side = abs(placed.square[1] - placed.square[0])
    if side < least_side:
        msg = f"{name or source}: its face has {side:.0f} pixels a side; at least {least_side} are needed"
        raise ImageError(msg)
    return placed.cut(size)


def place_photo(
    source: Path | BinaryIO, framing: Framing | None, number: int = 1, name: str | None = None
) -> Placed:
    """Read a photo and `place` its face. Raises `ImageError`, also if it cannot be read."""
    return place(open_picture(source, name), framing, number, name or str(source))


def load_faces_of(
    photos: Iterable[tuple[str, Opener]],
    size: int,
    framing: Framing | None,
    number: int = 1,
    least_side: int = 0,
) -> Iterator[Pixels | ImageError]:
    """Yield the face or the error of each (name, opener), as `load_keyed_faces` does."""
    keyed = ((None, name, opener) for name, opener in photos)
    for _, face in load_keyed_faces(keyed, size, framing, number, least_side):
        yield face


def load_keyed_faces(
    photos: Iterable[tuple[_Key, str, Opener]],
    size: int,
    framing: Framing | None,
    number: int = 1,
    least_side: int = 0,
) -> Iterator[tuple[_Key, Pixels | ImageError]]:
    """Yield the key of each photo with what `load_face` returns or raises for it, in order.

    A photo is a key, its name for messages, and its opener. Uses every core. Photos are taken from
    the iterable in batches.
    """

    def load(photo: tuple[_Key, str, Opener]) -> tuple[_Key, Pixels | ImageError]:
        key, name, opener = photo
        try:
            with opener() as file:
                return key, load_face(file, size, framing, number, name, least_side)
        except ImageError as error:
            return key, error
        except OSError as error:
            return key, ImageError(f"{name}: {error.strerror or error}")

    num_threads = torch.get_num_threads()
    # one torch thread in each worker; the caller keeps all of its own
    one_thread = partial(torch.set_num_threads, 1)
    with ThreadPoolExecutor(os.cpu_count(), initializer=one_thread) as pool:
        try:
            remaining = iter(photos)
            while batch := list(islice(remaining, _BATCH)):
                yield from pool.map(load, batch)
        finally:
            torch.set_num_threads(num_threads)  # the value that threads started later will get


def right_way_up(picture: Image.Image) -> tuple[Image.Image, int, list[Face]]:
    """Turn a picture so that its faces are upright.

    Returns the picture, its number of anticlockwise quarter turns, and its faces. The other
    orientations are tried only if no face is certainly upright.
    """
    candidates = [(picture, 0, find_faces(picture))]
    if _best_score(candidates[0][2]) < _UPRIGHT:
        for turns in (1, 2, 3):
            turned = picture.transpose(_TURNS[turns])
            candidates.append((turned, turns, find_faces(turned)))
    return max(candidates, key=lambda candidate: _best_score(candidate[2]))


def _best_score(faces: list[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


def find_faces(picture: Image.Image) -> list[Face]:
    """Detect the faces in an RGB picture, the largest first."""
    yunet, _ = _networks()
    scale = min(_MAX_SIDE / max(picture.size), max(1.0, _MIN_SIDE / max(picture.size)))
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
    """Face `number` of faces sorted by size, the largest first. Raises `ImageError` without one."""
    if not faces:
        msg = f"{name}: no face found; crop closer"
        raise NoFaceError(msg)
    if number > len(faces):
        found = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
        reason = f"{name}: has {found}, so there is no "
        raise ImageError(reason, Argument("face", number))
    return faces[number - 1]


def measure_framing(
    pictures: Pixels, progress: Callable[[int, int], None] = lambda *_: None
) -> Framing | None:
    """Estimate the framing of pictures (N, H, H, 3) of one face each; None if it varies too much.

    `progress` is called with the number of the picture and N.
    """
    found = []
    for number, pixels in enumerate(pictures, start=1):
        progress(number, len(pictures))
        faces = find_faces(Image.fromarray(pixels))
        if faces:
            found.append(faces[0].points / len(pixels))
    if len(found) < max(2, len(pictures) / 2):
        return None
    points = np.stack(found)
    median = np.median(points, axis=0)
    spreads = np.sqrt(np.square(points - median).sum(2).mean(0)).clip(1e-3)
    by_points = Framing(tuple((float(x), float(y)) for x, y in median), tuple(map(float, spreads)))
    by_extent = replace(
        by_points, extent=float(np.mean([extent_of(to_complex(p)) for p in points]))
    )

    def error(framing: Framing) -> float:
        return float(np.median([np.abs(square_of(p, framing) - CORNERS).mean() for p in points]))

    framing = min(by_points, by_extent, key=error)
    return framing if error(framing) < ALIGNED else None


# ---------------------------------------------------------------- networks


@cache
def _networks() -> tuple[YuNet, ONet]:
    weights = load_file(packaged_weights("faces.safetensors"))
    networks: dict[str, Any] = {"yunet": YuNet(), "onet": ONet()}
    for name, network in networks.items():
        part = {k.removeprefix(f"{name}."): t for k, t in weights.items() if k.startswith(name)}
        network.load_state_dict(part)
        network.eval()
    return networks["yunet"], networks["onet"]


def _without_overlaps(scores: torch.Tensor, boxes: torch.Tensor) -> list[int]:
    """Non-maximum suppression: the rows to keep, the best score first."""
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
    """Find the five points in a box, in pixels: first the eyes, then all with the head upright."""
    left, top, right, bottom = box
    centre, side = complex(left + right, top + bottom) / 2, max(right - left, bottom - top)
    left_eye, right_eye = _points_in(picture, centre, complex(side), _ONE_WINDOW)[:2]
    eyes = right_eye - left_eye
    found = _points_in(picture, centre, side * eyes / max(abs(eyes), 1e-9), _WINDOWS)
    return np.stack([found.real, found.imag], axis=1)


def _points_in(
    picture: Image.Image,
    centre: complex,
    across: complex,
    windows: Sequence[tuple[float, int, int]],
) -> npt.NDArray[np.complex128]:
    """Find the points (5,), as complex numbers, of the face with its box centred on `centre`.

    `across` is the upper side of the box as a vector.
    """
    crop_side = _BOX + 2 * _MARGIN
    across = across * crop_side / _BOX
    corner = centre - across * (1 + 1j) / 2
    pixels = cut_square(picture, corner + across * CORNERS, crop_side)
    image = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 127.5) / 128
    crops, boxes = [], []
    for scale, x, y in windows:
        side = round(_BOX * scale)
        left, top = (crop_side - side) // 2 + x, (crop_side - side) // 2 + y
        crop = image[None, :, top : top + side, left : left + side]
        crops.append(_resize(crop, (ONET_SIZE, ONET_SIZE)))
        boxes.append((complex(left, top), side))
    batch = torch.cat(crops)
    with torch.no_grad():
        found = _networks()[1](torch.cat([batch, batch.flip(3)]))[2].double()
    plain, mirrored = found.chunk(2)
    mirrored = mirrored[:, _MIRRORED_ORDER] * torch.tensor([-1, 1]) + torch.tensor([1, 0])
    within = ((plain + mirrored) / 2).numpy() @ (1, 1j)
    points = np.mean([p * side + start for p, (start, side) in zip(within, boxes, strict=True)], 0)
    located: npt.NDArray[np.complex128] = corner + across * points / crop_side
    return located

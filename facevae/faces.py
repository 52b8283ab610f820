"""Find the faces in a picture and bring one into the framing that a model was trained on."""

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
from facevae.framing import (
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
from facevae.images import Pixels, load_square, open_picture
from facevae.pictures import Opener

OR_AS_IT_IS = ", or take the picture as it is with --no-align"
_LONGEST, _SHORTEST = 640, 160  # sides in pixels at which faces are looked for
_MIN_SCORE, _MAX_OVERLAP = 0.6, 0.3
_UPRIGHT = 0.91  # a score that no face gets that lies on its side or upside down


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


def place(
    picture: Image.Image, framing: Framing | None, number: int = 1, name: str = "the picture"
) -> Placed:
    """Face `number` of an RGB photo, the largest being 1, and where the framing puts its square.

    Without a framing, and where the photo is framed so already, that is the largest centred
    square. A photo that lies on its side is turned upright. Raises `ImageError` for one without
    that face.
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
    """Face `number` of a photo, brought into the framing: (size, size, 3).

    Raises `ImageError`, as `place` does, for a photo that cannot be read too, and for one in which
    the square of that face has fewer than `least_side` pixels a side.
    """
    if framing is None:
        return load_square(source, size, name)
    placed = place_photo(source, framing, number, name)
    side = abs(placed.square[1] - placed.square[0])
    if side < least_side:
        msg = f"{name or source}: its face is too small, {side:.0f} pixels a side of at least {least_side}"
        raise ImageError(msg)
    return placed.cut(size)


def place_photo(
    source: Path | BinaryIO, framing: Framing | None, number: int = 1, name: str | None = None
) -> Placed:
    """What `place` finds in a photo. Raises `ImageError`, for one that cannot be read too."""
    return place(open_picture(source, name), framing, number, name or str(source))


def load_faces_of(
    photos: Iterable[tuple[str, Opener]],
    size: int,
    framing: Framing | None,
    number: int = 1,
    least_side: int = 0,
) -> Iterator[Pixels | ImageError]:
    """What `load_face` gives of each photo, or why there is none, in order, on every core.

    A photo is its name, for people, and what opens it.
    """

    def load(photo: tuple[str, Opener]) -> Pixels | ImageError:
        name, opener = photo
        try:
            with opener() as file:
                return load_face(file, size, framing, number, name, least_side)
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"{name}: {error.strerror or error}")

    threads = torch.get_num_threads()
    # a photo a core, not a core a network; what is done with them meanwhile may have every core
    one_each = partial(torch.set_num_threads, 1)
    with ThreadPoolExecutor(os.cpu_count(), initializer=one_each) as pool:
        try:
            rest = iter(photos)
            while part := list(islice(rest, _UNDER_WAY)):
                yield from pool.map(load, part)
        finally:
            torch.set_num_threads(threads)  # of threads that are yet to start


_UNDER_WAY = 64  # photos at a time


def right_way_up(picture: Image.Image) -> tuple[Image.Image, int, list[Face]]:
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
        msg = f"{name}: no face found; crop closer{OR_AS_IT_IS}"
        raise ImageError(msg)
    if number > len(faces):
        found = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
        msg = f"{name}: has {found}, so there is no --face {number}"
        raise ImageError(msg)
    return faces[number - 1]


def measure_framing(
    pictures: Pixels, progress: Callable[[int, int], None] = lambda *_: None
) -> Framing | None:
    """How pictures (N, H, H, 3) of one face each are framed; None if they are not framed alike.

    `progress` is told how many have been looked at, and of how many.
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
    middle = np.median(points, axis=0)
    spreads = np.sqrt(np.square(points - middle).sum(2).mean(0)).clip(1e-3)
    by_points = Framing(tuple((float(x), float(y)) for x, y in middle), tuple(map(float, spreads)))
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
    pixels = cut_square(picture, corner + across * CORNERS, whole)
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
